/**
 * All products of a decoded token in one launch on CUDA device 0, in every layout: µs a token and GB/s of the weights.
 *
 *   npx tsx benchmarks/ops/decode-chain-cuda.ts [replays: 20]
 *
 * First Qwen3-4B in every layout; then what of its time is what: without copies or without arithmetic or both, where
 * each product waits for the one before and where none does; then a model so small that waiting is all that is left.
 */
import { ops } from '../../test/support/native-ops'
import '../support/require-cuda'

const replays = Number(process.argv[2] ?? 20)

const qwen3 = { layers: 36, H: 2560, Q: 4096, KV: 1024, F: 9728, V: 151936 }
const small = { layers: 36, H: 1024, Q: 1024, KV: 256, F: 1024, V: 1024 }

const WORK = ['all', 'no copies', 'no products', 'neither']
const layouts = [
  [16, 5],
  [16, 4],
  [16, 3],
  [16, 2],
  [20, 4],
  [20, 3],
].map(([warps, slots]) => ({ warps, slots, work: 0 }))
const parts = WORK.map((_, work) => ({ ...layouts[0]!, work }))

function measure(title: string, dims: typeof qwen3, independent: boolean, variants: typeof layouts): void {
  const { layers, H, Q, KV, F, V } = dims
  const weights = layers * ((Q + 2 * KV) * H + H * Q + 3 * F * H) + V * H
  const bytes = (weights * 9) / 16
  const times = ops.decodeChainCudaTime!({ ...dims, independent, variants }, replays) as number[]
  console.log(`${title}: ${(bytes / 1e9).toFixed(3)} GB\n   warps   slots        work      µs    GB/s µs/stage`)
  variants.forEach(({ warps, slots, work }, i) => {
    const us = times[i]!
    const speeds = [us.toFixed(1), (bytes / us / 1e3).toFixed(0), (us / (4 * layers + 1)).toFixed(2)]
    const start = [warps, slots].map((cell) => String(cell).padStart(8)).join('') + WORK[work]!.padStart(12)
    console.log(start + speeds.map((cell) => cell.padStart(8)).join(''))
  })
}

measure('Qwen3-4B', qwen3, false, [...layouts, ...parts.slice(1)])
measure('Qwen3-4B, no product waits for another', qwen3, true, parts)
measure('a small model', small, false, [layouts[0]!, ...parts.slice(1)])
