/** Full-parameter training, weights and moments NVFP4: the steps that are timed are those whose losses are shown. */
import { type Bench, median, memoryNote, secondsOf, tokenIds } from './measure'
import { trainLimit, type Workload } from './workloads'

/** Steps that are not timed. */
const WARM_STEPS = 3

/** Below as many tokens a step is a time, not a rate. */
const FEW_TOKENS = 128

export async function measureTrain(bench: Bench): Promise<void> {
  for (const shape of bench.workload.train) {
    await bench.attempt(`training ${shape.batch}x${shape.tokens}`, () => measureStep(bench, shape))
  }
}

async function measureStep(bench: Bench, shape: Workload['train'][number]): Promise<void> {
  const { model, workload, machine } = bench
  const { batch: B, tokens: T, recompute } = shape
  const sequences = Array.from({ length: B }, (_, b) => Array.from(tokenIds(T, workload.config.vocabSize, b + 1)))
  const [losses, times]: [number[], number[]] = [[], []]
  model.resetMemoryPeak()
  const optimizer = model.createOptimizer({ lr: bench.lr, moments: 'nvfp4', seed: 1 })
  let memory: string
  try {
    const step = async () => {
      const { loss } = await optimizer.trainStep({ ids: sequences, labels: sequences }, { recompute })
      losses.push(loss)
    }
    for (let i = 0; i < Math.max(bench.steps, WARM_STEPS + 1); i++) times.push(await secondsOf(step))
    memory = await memoryNote(model)
  } finally {
    await optimizer.dispose()
  }
  const seconds = median(times.slice(WARM_STEPS))
  const rate = (B * T) / seconds
  const limit = trainLimit(workload, shape, machine)
  const few = T < FEW_TOKENS
  bench.add({
    what: `training step ${B}x${T}, recompute '${recompute}'`,
    ours: few ? 1000 * seconds : rate,
    unit: few ? 'ms' : 'tok/s',
    limit: few ? (1000 * B * T) / limit : limit,
    peers: { checkpointed: `train ${B}x${T}` },
    note: `${few ? `${rate.toFixed(0)} tok/s` : `${(1000 * seconds).toFixed(1)} ms`}, ${memory}`,
  })
  bench.say(`Loss of ${B}x${T}, ${losses.length} steps on one batch: ${losses.map((l) => l.toFixed(2)).join(' ')}`)
}
