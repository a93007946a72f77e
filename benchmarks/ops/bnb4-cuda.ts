/**
 * Products with NF4 weights on CUDA device 0, at Qwen3-4B's shapes: µs and GB/s of the matrix-vector product beside a
 * kernel that only reads the same bytes, and µs at more tokens beside NVFP4.
 *
 *   npx tsx benchmarks/ops/bnb4-cuda.ts [replays: 5]
 *
 * As in gemv-cuda.ts, every figure is the fastest of the replays of a graph that walks once through at least 1.25 GB of
 * distinct random weights, divided by the launches: gaps between kernels are included.
 */
import { ops } from '../../test/support/native-ops'
import '../support/require-cuda'

const replays = Number(process.argv[2] ?? 5)
const ringBytes = 1.25e9

const shapes: [string, N: number, K: number][] = [
  ['q', 4096, 2560],
  ['k, v', 1024, 2560],
  ['o', 2560, 4096],
  ['gate, up', 9728, 2560],
  ['down', 2560, 9728],
  ['head', 151936, 2560],
]
const counts = [1, 2, 4, 8]

const row = (...cells: (string | number)[]) =>
  console.log(cells.map((cell, i) => String(cell)[i === 0 ? 'padEnd' : 'padStart'](i === 0 ? 12 : 10)).join(''))
const time = (form: string, T: number, N: number, K: number): number =>
  ops.linearCudaTime!('forward', form, { T, N, K, ringBytes }, replays)

console.log('NF4, µs at T tokens; GB/s and "x read" of one')
row('', 'read µs', ...counts, 'GB/s', 'x read', 'NVFP4 T 1')
for (const [name, N, K] of shapes) {
  const bytes = (N * K * 9) / 16
  const read: number = ops.readCudaTime!(Math.floor(bytes / 256) * 256, ringBytes, replays)
  const times = counts.map((T) => time('nf4', T, N, K))
  const rate = (bytes / times[0]! / 1e3).toFixed(0)
  const cells = [read, ...times].map((us) => us.toFixed(2))
  row(name, ...cells, rate, (times[0]! / read).toFixed(2), time('nvfp4', 1, N, K).toFixed(2))
}

console.log('\nµs at many tokens, decoded to bf16: NF4 and NVFP4')
row('', ...[16, 512, 2048].flatMap((T) => [`T ${T}`, 'NVFP4']))
for (const [name, N, K] of shapes.slice(0, 5)) {
  row(name, ...[16, 512, 2048].flatMap((T) => ['nf4', 'nvfp4'].map((form) => time(form, T, N, K).toFixed(1))))
}
