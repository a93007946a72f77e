/**
 * The memory-bound small ops at Qwen3-4B's shape (H 2560, F 9728, V 151,936), T tokens: time and GB/s of the bytes that
 * each must at least read and write.
 *
 *   npx tsx benchmarks/ops/elementwise.ts [threads] [isa]
 *
 * `copy` is one thread's copy of arrays as large, for comparison.
 */
import { ops, seededValues, type OpOptions } from '../../test/support/native-ops'

const [T, H, F, V] = [256, 2560, 9728, 151936]
const options: OpOptions = { threads: Number(process.argv[2] ?? 1), isa: process.argv[3] as OpOptions['isa'] }
if (!options.isa) delete options.isa

/** Prints the median of seven runs after one that warms up. */
function measure(name: string, floats: number, run: () => void): void {
  const times = Array.from({ length: 8 }, () => {
    const start = performance.now()
    run()
    return performance.now() - start
  })
  const ms = times.slice(1).sort((a, b) => a - b)[3]!
  console.log(
    `${name.padEnd(26)} ${ms.toFixed(3).padStart(9)} ms ${((floats * 4) / ms / 1e6).toFixed(1).padStart(7)} GB/s`,
  )
}

function norms(): void {
  const [x, dy, w] = [seededValues(T * H, 1), seededValues(T * H, 2), seededValues(H, 3)]
  const [y, dx, dw, invRms] = [x.slice(), x.slice(), w.slice(), new Float32Array(T)]
  measure('copy', 2 * T * H, () => y.set(x))
  measure('rmsNorm', 2 * T * H, () => ops.rmsNorm!(y, invRms, x, w, T, H, 1e-6, options))
  measure('rmsNormBackward', 4 * T * H, () => ops.rmsNormBackward!(dx, dw, dy, x, w, invRms, T, H, options))
}

function rotations(): void {
  const [heads, D] = [32, 128]
  const x = seededValues(T * heads * D, 1)
  const [cosines, sines] = [new Float32Array((T * D) / 2), new Float32Array((T * D) / 2)]
  const positions = Int32Array.from({ length: T }, (_, t) => t)
  measure('ropeTable', T * D, () => ops.ropeTable!(cosines, sines, positions, T, D, 1e6, options))
  measure('rope, 32 heads', 2 * x.length, () => ops.rope!(x, cosines, sines, T, heads, D, false, options))
}

function activations(): void {
  const count = T * F
  const [gate, up, dy] = [seededValues(count, 1, 6), seededValues(count, 2), seededValues(count, 3)]
  const [y, dgate, dup] = [gate.slice(), gate.slice(), gate.slice()]
  measure('swiglu', 3 * count, () => ops.swiglu!(y, gate, up, count, options))
  measure('swigluBackward', 5 * count, () => ops.swigluBackward!(dgate, dup, dy, gate, up, count, options))
}

function losses(): void {
  const rows = 16
  const logits = seededValues(rows * V, 1, 10)
  const labels = Int32Array.from({ length: rows }, (_, t) => t * 1000)
  const [sum, target, lse] = [new Float32Array(rows), new Float32Array(rows), new Float32Array(rows).fill(20)]
  const [max, weight] = [new Float32Array(rows).fill(-Infinity), new Float32Array(rows).fill(1)]
  measure('crossEntropyAccumulate', logits.length, () =>
    ops.crossEntropyAccumulate!(max, sum, target, logits, labels, rows, V, 0, options),
  )
  measure('crossEntropyGradient', 2 * logits.length, () =>
    ops.crossEntropyGradient!(logits, lse, labels, weight, rows, V, 0, options),
  )
}

/** One row of logits; the instruction set is the machine's own, the thread one. */
function samples(): void {
  const flat = seededValues(V, 1, 6)
  const peaked = flat.map((v) => v + (v > 5.99 ? 12 : 0))
  const none = new Int32Array(0)
  const sample = (name: string, logits: Float32Array, sampling: object) => {
    let position = 0
    measure(name, V, () => ops.sampleToken!(logits, V, none, position++, sampling))
  }
  sample('sample greedy', flat, {})
  sample('sample temperature', flat, { temperature: 1 })
  sample('sample top-k 20 top-p .95', flat, { temperature: 0.6, topK: 20, topP: 0.95 })
  sample('sample top-p .95, peaked', peaked, { temperature: 0.6, topP: 0.95 })
  sample('sample top-p .95, flat', flat, { temperature: 1, topP: 0.95 })
}

norms()
rotations()
activations()
losses()
samples()
