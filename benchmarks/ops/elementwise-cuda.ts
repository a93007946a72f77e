/**
 * The memory-bound small ops on CUDA at Qwen3-4B's shape: time per launch, GB/s of the bytes that each must at least read
 * and write, and the fraction of what a device-to-device copy of 256 MB moves in the same run.
 *
 *   npx tsx benchmarks/ops/elementwise-cuda.ts [iterations]
 *
 * Tensors hold random values and lie elsewhere at every launch, over 512 MiB: no cache holds them. Launches follow each
 * other without waiting, so that a small op (T 1) shows the pace of launches, about 2 µs.
 */
import { ops } from '../../test/support/native-ops'

const [H, F, V, Q, KV, D] = [2560, 9728, 151936, 32, 8, 128]
const iterations = Number(process.argv[2] ?? 100)

/** Several rounds, the fastest: others may share the device. */
const microseconds = (name: string, dims: object) =>
  Math.min(...Array.from({ length: 5 }, () => ops.smallCudaTime!(name, dims, iterations) as number))

const copied = 2 ** 27
const copyRate = (2 * copied) / microseconds('copy', { bytes: copied }) / 1e3
console.log(`copy ${copyRate.toFixed(0)} GB/s`)

function measure(name: string, bytes: number, dims: Record<string, number>): void {
  const time = microseconds(name, dims)
  const rate = bytes / time / 1e3
  const shape = Object.entries(dims)
    .map(([dim, size]) => `${dim} ${size}`)
    .join(', ')
  console.log(
    `${name.padEnd(23)} ${shape.padEnd(36)} ${time.toFixed(2).padStart(9)} µs ${rate.toFixed(0).padStart(6)} GB/s ` +
      `${((100 * rate) / copyRate).toFixed(0).padStart(4)} %`,
  )
}

for (const T of [1, 8, 512, 2048, 8192]) {
  measure('rmsNorm', 4 * T * H, { T, H })
  measure('rmsNormBackward', 6 * T * H, { T, H, accumulate: 0 })
  measure('rmsNormBackward', 8 * T * H, { T, H, accumulate: 1 })
  measure('rmsNorm', 4 * T * Q * D, { T: T * Q, H: D })
  measure('rmsNormBackward', 6 * T * Q * D, { T: T * Q, H: D, accumulate: 0 })
  measure('qkNormRope', 4 * T * (Q + KV) * D, { T, Q, KV, D })
  measure('ropeTable', 4 * T * D, { T, D })
  measure('rope', 4 * T * Q * D, { T, heads: Q, D })
  if (T <= 2048) {
    measure('swiglu', 6 * T * F, { T, F })
    measure('swigluBackward', 10 * T * F, { T, F })
  }
  measure('embedding', (2 + 9 / 16) * T * H, { T, H, V, packed: 1 })
  measure('embedding', 4 * T * H, { T, H, V: 32768, packed: 0 })
  measure('embeddingBackward', 10 * T * H, { T, H, V: 16384, rows: 16384 })
}
for (const [T, C] of [
  [1, V],
  [256, V],
  [2048, 16384],
] as const) {
  measure('crossEntropyAccumulate', 2 * T * C, { T, C, V: C })
  measure('crossEntropyGradient', 4 * T * C, { T, C, V: C })
}
