/**
 * All products of a decoded token in one launch on CUDA device 0, in every layout: µs a token and GB/s of the weights.
 *
 *   npx tsx benchmarks/ops/decode-chain-cuda.ts [replays: 20]
 *
 * First Qwen3-4B; then the same products when none waits for another, which shows what waiting costs; then a model so
 * small that waiting is all that is left.
 */
import { ops } from '../../test/support/native-ops'
import '../support/require-cuda'

const replays = Number(process.argv[2] ?? 20)
const KIB = 1024

const qwen3 = { layers: 36, H: 2560, Q: 4096, KV: 1024, F: 9728, V: 151936 }
const small = { layers: 36, H: 1024, Q: 1024, KV: 256, F: 1024, V: 1024 }

const layouts = [
  [1, 1],
  [1, 2],
  [2, 1],
  [2, 2],
  [3, 1],
].map(([rowGroups, tiles]) => ({ rowGroups, tiles, ringBytes: 0 }))
const rings = [160, 136].flatMap((kib) => layouts.slice(2, 4).map((layout) => ({ ...layout, ringBytes: kib * KIB })))

function measure(title: string, dims: typeof qwen3, independent: boolean, variants: typeof layouts): void {
  const { layers, H, Q, KV, F, V } = dims
  const weights = layers * ((Q + 2 * KV) * H + H * Q + 3 * F * H) + V * H
  const bytes = (weights * 9) / 16
  const times = ops.decodeChainCudaTime!({ ...dims, independent, variants }, replays) as number[]
  console.log(`${title}: ${(bytes / 1e9).toFixed(3)} GB\n  groups   tiles ring KiB      µs    GB/s µs/stage`)
  variants.forEach(({ rowGroups, tiles, ringBytes }, i) => {
    const us = times[i]!
    const ring = ringBytes ? ringBytes / KIB : 'all'
    const cells = [
      rowGroups,
      tiles,
      ring,
      us.toFixed(1),
      (bytes / us / 1e3).toFixed(0),
      (us / (4 * layers + 1)).toFixed(2),
    ]
    console.log(cells.map((cell) => String(cell).padStart(8)).join(''))
  })
}

measure('Qwen3-4B', qwen3, false, [...layouts, ...rings])
measure('Qwen3-4B, no product waits for another', qwen3, true, layouts)
measure('a small model', small, false, layouts)
