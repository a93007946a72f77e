/**
 * The NVFP4 codec on CUDA device 0, bf16 to NVFP4 and back: GB/s beside a copy, and what all of Qwen3-4B would take.
 *
 *   npx tsx benchmarks/ops/nvfp4-cuda.ts [replays: 5]
 *
 * Every figure is the fastest of the replays of one CUDA graph that walks once through 2 GB of distinct bf16 tensors, so
 * that nothing is still in L2. Quantising rounds to nearest under a given global scale; `amax` is the pass that finds it.
 */
import { ops } from '../../test/support/native-ops'
import '../support/require-cuda'

const replays = Number(process.argv[2] ?? 5)
const ringBytes = 2e9

const row = (...cells: (string | number)[]) =>
  console.log(cells.map((cell, i) => String(cell)[i === 0 ? 'padEnd' : 'padStart'](i === 0 ? 32 : 12)).join(''))

const large = 2 ** 30
// The first one also wakes the device's clocks.
const copies = [0, 1, 2].map(() => (2 * large) / ops.copyCudaTime!(large, large, replays) / 1e3)
const copy = Math.max(...copies)
console.log(`copy ${copy.toFixed(0)} GB/s (read + written)`)
row('tensor [N, K]', 'µs', 'GB/s', 'of copy')
const shapes: [N: number, K: number, count: number][] = [
  [4096, 2560, 36], // q
  [1024, 2560, 72], // k, v
  [2560, 4096, 36], // o
  [9728, 2560, 72], // gate, up
  [2560, 9728, 36], // down
  [151936, 2560, 1], // embedding and head
]
for (const [op, bytes] of [
  ['dequantize', 2 + 9 / 16],
  ['quantize', 2 + 9 / 16],
  ['amax', 2],
] as const) {
  let all = 0
  for (const [N, K, count] of shapes) {
    const us = ops.nvfp4CudaTime!(op, { N, K, ringBytes }, replays) as number
    const rate = (N * K * bytes) / us / 1e3
    all += (us * count) / 1e3
    row(`${op} [${N}, ${K}]`, us.toFixed(1), rate.toFixed(0), `${((100 * rate) / copy).toFixed(0)} %`)
  }
  console.log(`${op} of all weights, a tensor a launch: ${all.toFixed(2)} ms`)
}
