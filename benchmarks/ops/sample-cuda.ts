/** Choosing a token on CUDA, one row of Qwen3's vocabulary: npx tsx benchmarks/ops/sample-cuda.ts */
import { ops, seededValues } from '../../test/support/native-ops'

const V = 151936
const REPLAYS = 20
const NEAR_NORMAL = [1, 2, 3].map((seed) => seededValues(V, seed, 4))
const logits = NEAR_NORMAL[0]!.map((value, id) => value + NEAR_NORMAL[1]![id]! + NEAR_NORMAL[2]![id]!)

const OPTIONS = {
  greedy: {},
  'greedy, penalty': { repetitionPenalty: 1.1 },
  'greedy, 5 log-probabilities': { topLogprobs: 5 },
  'temperature 1': { temperature: 1 },
  'top-k 20': { temperature: 0.6, topK: 20 },
  'top-p 0.95': { temperature: 0.6, topP: 0.95 },
  'top-k 20, top-p 0.95': { temperature: 0.6, topK: 20, topP: 0.95 },
  'min-p 0.05': { temperature: 1, minP: 0.05 },
}
const BLOCKS = [0, 1, 2, 4, 8]

console.log(`| µs of a launch in a graph | blocks: most | ${BLOCKS.slice(1).join(' | ')} |`)
console.log(`| --- |${' --- |'.repeat(BLOCKS.length)}`)
for (const [name, options] of Object.entries(OPTIONS)) {
  const times = BLOCKS.map((blocks) => ops.sampleTokenCudaTime!(logits, V, options, { blocks }, REPLAYS) as number)
  console.log(`| ${name} | ${times.map((time) => time.toFixed(1)).join(' | ')} |`)
}
