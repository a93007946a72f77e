/**
 * The packed AdamW update on CUDA: bytes of weights, moments and gradients a second, beside a copy on the device.
 *
 *   npx tsx benchmarks/ops/adamw-cuda.ts [iterations]
 *
 * Weights and moments in NVFP4; each launch takes the next of several matrices, more than the caches hold.
 * b = 1 − β₂ is .001; the first shape is also timed with .05, as in the first steps, and with f32 gradients. `4.02 G` is the time the same rate
 * takes for every parameter of Qwen3-4B.
 */
import { ops } from '../../test/support/native-ops'

const iterations = Number(process.argv[2] ?? 40)
const shapes: [number, number][] = [
  [9728, 2560],
  [2560, 9728],
  [4096, 2560],
  [1024, 2560],
  [2560, 4096],
]

console.log('shape          mode             gradient    b      µs    GB/s  % of copy  4.02 G, ms')
for (const mode of ['nvfp4', 'nvfp4+residual']) {
  for (const [N, K] of shapes) {
    const others = [
      { bf16: true, b: 0.05 },
      { bf16: false, b: 0.001 },
    ]
    for (const { bf16, b } of [{ bf16: true, b: 0.001 }, ...(N === shapes[0]![0] ? others : [])]) {
      const time = ops.adamwCudaTime!({ N, K, mode, bf16, b }, iterations)
      const bytes = N * K * ((mode === 'nvfp4' ? 3.375 : 4.5) + (bf16 ? 2 : 4))
      const rate = bytes / time.microseconds / 1e3
      const copy = time.copyBytes / time.copyMicroseconds / 1e3
      console.log(
        `[${N}, ${K}]`.padEnd(15) +
          mode.padEnd(17) +
          (bf16 ? 'bf16' : 'f32').padEnd(8) +
          String(b).padStart(5) +
          time.microseconds.toFixed(1).padStart(8) +
          rate.toFixed(0).padStart(8) +
          `${((100 * rate) / copy).toFixed(1)} of ${copy.toFixed(0)}`.padStart(13) +
          ((4.022468096e9 / (N * K)) * time.microseconds * 1e-3).toFixed(2).padStart(10),
      )
    }
  }
}
