/**
 * Loss of every state mode on the same batches from the same initial weights, as a table against fp32 weights and states.
 *
 *   npx tsx benchmarks/convergence/small.ts [--steps 300] [--lr 2e-3] [--seeds 1,2,3,4] [--modes nvfp4/nvfp4,...] [--device cuda:0]
 *
 * A row is the mean over the seeds (weights, batches and rounding); the spread is half the range of its ratio to the first
 * row over the seeds: smaller differences say nothing. The text is examples/data/corpus.txt and the questions and answers of chat.tsv, cut into random windows.
 */
import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { Qwen3Nvfp4Model, Tokenizer, type OptimizerOptions, type Qwen3Config } from 'qwen3-nvfp4'
import { makeByteTokenizer } from '../../examples/support/make-byte-tokenizer'
import { mulberry32 } from '../support/mulberry32'

const B = 8
const T = 64
const LAST = 50 // steps whose losses are averaged

const { values } = parseArgs({
  options: {
    steps: { type: 'string', default: '300' },
    lr: { type: 'string', default: '2e-3' },
    seeds: { type: 'string', default: '1,2,3,4' },
    device: { type: 'string', default: 'cpu' },
    modes: {
      type: 'string',
      default: 'dense/fp32,fp32/fp32,dense/nvfp4,fp32/nvfp4,nvfp4+residual/nvfp4,nvfp4/fp32,nvfp4/int8,nvfp4/nvfp4',
    },
  },
})
const steps = Number(values.steps)
const peakLr = Number(values.lr)
const seeds = values.seeds.split(',').map(Number)

const text = readFileSync('examples/data/corpus.txt', 'utf8') + readFileSync('examples/data/chat.tsv', 'utf8')
const made = makeByteTokenizer(text, 512)
const ids = Tokenizer.fromJson(made.tokenizerJson, made.tokenizerConfig).encode(text)

const config: Qwen3Config = {
  hiddenSize: 128,
  numHiddenLayers: 3,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 32,
  intermediateSize: 384,
  vocabSize: 512,
  ropeTheta: 1e4,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
}

/** The same windows for every mode: mulberry32 of the seed. */
function makeBatches(seed: number): { ids: Int32Array[]; labels: Int32Array[] } {
  const random = mulberry32(seed)
  const batches = { ids: [] as Int32Array[], labels: [] as Int32Array[] }
  for (let i = 0; i < steps * B; i++) {
    const at = Math.floor(random() * (ids.length - T - 1))
    batches.ids.push(ids.slice(at, at + T))
    batches.labels.push(ids.slice(at + 1, at + T + 1))
  }
  return batches
}

type Batches = ReturnType<typeof makeBatches>
const rows = (all: Int32Array[], step: number): number[][] => all.slice(step * B, (step + 1) * B).map((row) => [...row])
/** Linear warm-up over 20 steps, then a cosine to a tenth. */
const rate = (step: number): number =>
  peakLr * Math.min(1, (step + 1) / 20) * (0.1 + 0.45 * (1 + Math.cos((Math.PI * step) / steps)))

async function run(
  weights: string,
  moments: string,
  seed: number,
  batches: Batches,
): Promise<{ loss: number; updateRms: number; seconds: number }> {
  const dense = weights === 'dense'
  await using model = await Qwen3Nvfp4Model.initialize(config, {
    device: values.device,
    seed,
    stddev: 0.04,
    weights: dense ? 'fp32' : 'nvfp4',
  })
  const optimizer = model.createOptimizer({
    ...(dense ? {} : { weights: weights as OptimizerOptions['weights'] }),
    moments: moments as OptimizerOptions['moments'],
    betas: [0.9, 0.95],
    weightDecay: 0.1,
    seed,
  })
  const start = performance.now()
  let loss = 0
  let updateRms = 0
  for (let step = 0; step < steps; step++) {
    const batch = { ids: rows(batches.ids, step), labels: rows(batches.labels, step), shifted: true }
    const stats = await optimizer.trainStep(batch, { lr: rate(step), maxGradNorm: 1, recompute: 'none' })
    if (step >= steps - LAST) loss += stats.loss / LAST
    updateRms = stats.updateRms
  }
  await optimizer.dispose()
  return { loss, updateRms, seconds: (performance.now() - start) / 1000 }
}

console.log(
  `${steps} steps of ${B}x${T} tokens, lr ${peakLr}, seeds ${seeds}; loss is the mean of the last ${LAST} steps`,
)
console.log('| weights | moments | loss | against first row | spread | update RMS | tokens/s |')
console.log('| --- | --- | --- | --- | --- | --- | --- |')
const batches = new Map(seeds.map((seed) => [seed, makeBatches(seed)]))
const mean = (numbers: number[]): number => numbers.reduce((a, b) => a + b, 0) / numbers.length
let reference: number[] = []
for (const mode of values.modes.split(',')) {
  const [weights, moments] = mode.split('/') as [string, string]
  const runs = []
  for (const seed of seeds) runs.push(await run(weights, moments, seed, batches.get(seed)!))
  const losses = runs.map(({ loss }) => loss)
  if (reference.length === 0) reference = losses
  const percent = losses.map((loss, i) => (loss / reference[i]! - 1) * 100)
  const spread = (Math.max(...percent) - Math.min(...percent)) / 2
  const rms = mean(runs.map(({ updateRms }) => updateRms))
  const speed = Math.round((seeds.length * steps * B * T) / runs.reduce((sum, { seconds }) => sum + seconds, 0))
  const cells = [weights, moments, mean(losses).toFixed(3), `${mean(percent).toFixed(1)} %`, `± ${spread.toFixed(1)} %`]
  console.log(`| ${[...cells, rms.toFixed(2), speed].join(' | ')} |`)
}
