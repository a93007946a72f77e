/**
 * What a Trainer costs over the bare loop of trainStep, and a checkpoint over writing its bytes, as a table.
 *
 *   npx tsx benchmarks/train/trainer.ts [--device cuda:0] [--model tiny|small|4b] [--steps 200] [--rounds 5] [--tokens 64] [--threads 1] [--folder /tmp]
 *
 * Bare and trained runs take turns over the same batches from the same weights; the least time of each counts, and the least
 * processor time of the JS thread, which is all that a Trainer adds and which other processes disturb little. Bytes are
 * written and flushed as one file, in pieces of 4 MiB, on the disk of the checkpoint, after each checkpoint.
 */
import { mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { learningRate, planSchedule, Qwen3Nvfp4Model, type Qwen3Config, Trainer, TrainingData } from 'qwen3-nvfp4'
import { qwen3Of4b } from '../../test/support/qwen3-4b'
import { now, secondsOf } from '../gpu/measure'

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cpu' },
    model: { type: 'string', default: 'tiny' },
    steps: { type: 'string', default: '200' },
    rounds: { type: 'string', default: '5' },
    tokens: { type: 'string', default: '64' },
    threads: { type: 'string', default: '1' },
    folder: { type: 'string', default: tmpdir() },
  },
})
const [steps, rounds, tokens] = [Number(values.steps), Number(values.rounds), Number(values.tokens)]

const tiny: Qwen3Config = {
  ...qwen3Of4b,
  ...{ hiddenSize: 128, numHiddenLayers: 2, numAttentionHeads: 4, numKeyValueHeads: 2, headDim: 32 },
  ...{ intermediateSize: 384, vocabSize: 512 },
}
const small: Qwen3Config = {
  ...qwen3Of4b,
  hiddenSize: 1024,
  numHiddenLayers: 8,
  intermediateSize: 4096,
  vocabSize: 8192,
}
const config = { tiny, small, '4b': qwen3Of4b }[values.model]!
const ids = (seed: number) => Int32Array.from({ length: tokens }, (_, i) => ((i + seed) * 7919) % config.vocabSize)
const data = await TrainingData.fromSamples(Array.from({ length: 32 }, (_, i) => ({ ids: ids(i), labels: ids(i) })))

await using model = await Qwen3Nvfp4Model.initialize(config, {
  ...{ device: values.device, seed: 1 },
  ...(values.device === 'cpu' && { threads: Number(values.threads) }),
})
await using optimizer = model.createOptimizer({ decayNorms: false })
const common = { maxTokens: tokens, shuffle: false }
const schedule = { lr: 1e-4, warmupSteps: 2 }
const folder = mkdtempSync(join(values.folder, 'qn-trainer-'))

/** Calls `begun` behind its first step: what a run does once is not counted. */
type Run = (begun: () => void) => Promise<void>

const bare: Run = async (begun) => {
  const plan = planSchedule(schedule, steps)
  let step = 0
  for await (const { batch } of data.batches({ ...common, epochs: Infinity })) {
    if (step++ === steps) break
    await optimizer.trainStep(batch, { lr: learningRate(plan, step), maxGradNorm: 1 })
    if (step === 1) begun()
  }
}

const trained =
  (logFile?: string): Run =>
  async (begun) => {
    const trainer = new Trainer({ model, data, ...common, ...schedule, steps, optimizer, logFile })
    await trainer.once('step', begun).run()
  }

/** Processor time of the main thread, of which Linux counts the nanoseconds. */
function jsThreadSeconds(): number {
  return Number(readFileSync('/proc/self/schedstat', 'utf8').split(' ')[0]) / 1e9
}

/** Seconds to write and flush zeros as one file, beside the one before: as a checkpoint, it gets other memory of the system. */
async function writeSeconds(bytes: number): Promise<number> {
  const [path, before] = [join(folder, 'bytes'), join(folder, 'bytes-before')]
  const piece = Buffer.alloc(4 << 20)
  const seconds = await secondsOf(async () => {
    const file = await open(path, 'w')
    for (let done = 0; done < bytes; done += piece.length)
      await file.write(piece, 0, Math.min(piece.length, bytes - done))
    await file.sync()
    await file.close()
  })
  renameSync(path, before)
  return seconds
}

/** The checkpoint before is removed while training goes on. */
async function removed(folder: string): Promise<void> {
  while (readdirSync(folder).some((name) => name.startsWith('.tmp-'))) await setTimeout(10)
}

try {
  await bare(() => {})
  const runs: Record<string, { work: Run; wall: number; busy: number }> = {
    'bare loop': { work: bare, wall: Infinity, busy: Infinity },
    Trainer: { work: trained(), wall: Infinity, busy: Infinity },
    'Trainer with a log': { work: trained(join(folder, 'log.jsonl')), wall: Infinity, busy: Infinity },
  }
  for (let i = 0; i < rounds; i++) {
    for (const run of Object.values(runs)) {
      let [wallBegin, busyBegin] = [0, 0]
      await run.work(() => ([wallBegin, busyBegin] = [now(), jsThreadSeconds()]))
      run.wall = Math.min(run.wall, now() - wallBegin)
      run.busy = Math.min(run.busy, jsThreadSeconds() - busyBegin)
    }
  }
  const { wall, busy } = runs['bare loop']!
  console.log(`${values.model} on ${values.device}, ${steps} steps of ${tokens} tokens, least of ${rounds} runs each\n`)
  console.log('| run | ms a step | over the loop | JS thread, µs a step | more than the loop, of a step |')
  console.log('| --- | ---: | ---: | ---: | ---: |')
  for (const [name, run] of Object.entries(runs)) {
    const [over, share] = [run.wall / wall - 1, (run.busy - busy) / wall].map((x) => `${(100 * x).toFixed(2)} %`)
    const [ms, us] = [((1e3 * run.wall) / (steps - 1)).toFixed(3), ((1e6 * run.busy) / (steps - 1)).toFixed(1)]
    console.log(`| ${name} | ${ms} | ${over} | ${us} | ${share} |`)
  }

  const checkpointDir = join(folder, 'run')
  const files = { checkpointDir, checkpointEvery: 1, keep: 1 }
  const pairs: { bytes: number; pause: number; write: number }[] = []
  for await (const event of new Trainer({ model, data, ...common, ...schedule, steps: 6, optimizer, ...files })) {
    if (event.type !== 'checkpoint') continue
    await removed(checkpointDir)
    pairs.push({ bytes: event.bytes, pause: event.seconds, write: await writeSeconds(event.bytes) })
  }
  const [pause, write] = [Math.min(...pairs.map((pair) => pair.pause)), Math.min(...pairs.map((pair) => pair.write))]
  console.log(
    `\ncheckpoint of ${(pairs[0]!.bytes / 2 ** 20).toFixed(1)} MiB, least of ${pairs.length}: training stands still for ${pause.toFixed(3)} s`,
  )
  console.log(`writing as many bytes: ${write.toFixed(3)} s; ratio ${(pause / write).toFixed(2)}`)
} finally {
  rmSync(folder, { recursive: true, force: true })
}
