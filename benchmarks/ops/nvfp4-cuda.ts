/**
 * The NVFP4 codec on CUDA device 0, bf16 to NVFP4 and back: GB/s beside a copy, and what all of Qwen3-4B would take.
 *
 *   npx tsx benchmarks/ops/nvfp4-cuda.ts [replays: 5] [variants]
 *
 * Every figure is the fastest of the replays of one CUDA graph that walks once through 2 GB of distinct bf16 tensors, so
 * that nothing is still in L2. Quantising rounds to nearest under a given global scale; `amax` is the pass that finds it.
 */
import { ops } from '../../test/support/native-ops'

const replays = Number(process.argv[2] ?? 5)
const withVariants = process.argv[3] === 'variants'
const ringBytes = 2e9
const parameters = 4.02e9

const probe = ops.probeCuda!() as { devices: number; reason: string }
if (probe.devices === 0) {
  console.log(`no CUDA device: ${probe.reason}`)
  process.exit(0)
}

const row = (...cells: (string | number)[]) =>
  console.log(cells.map((cell, i) => String(cell)[i === 0 ? 'padEnd' : 'padStart'](i === 0 ? 32 : 12)).join(''))

const large = 2 ** 30
const copy = (2 * large) / ops.copyCudaTime!(large, large, replays) / 1e3
console.log(`copy ${copy.toFixed(0)} GB/s (read + written)`)
row('tensor [N, K]', 'µs', 'GB/s', 'of copy', '4.02 B, ms')
for (const [op, bytes, variants] of [
  ['dequantize', 2 + 9 / 16, [0, 1, 2, 8]],
  ['quantize', 2 + 9 / 16, [0, 1, 4]],
  ['amax', 2, [0]],
] as const) {
  for (const [N, K] of [
    [1024, 2560],
    [2560, 4096],
    [19456, 2560],
    [2560, 9728],
    [151936, 2560],
  ] as const) {
    for (const variant of withVariants ? variants : [0]) {
      const us = ops.nvfp4CudaTime!(op, { N, K, ringBytes, variant }, replays) as number
      const rate = (N * K * bytes) / us / 1e3
      const all = (us * parameters) / (N * K) / 1e3
      const name = `${op} [${N}, ${K}]${variant ? ` variant ${variant}` : ''}`
      row(name, us.toFixed(1), rate.toFixed(0), `${((100 * rate) / copy).toFixed(0)} %`, all.toFixed(2))
    }
  }
}
