/**
 * Matrix-vector products of a decoded token on CUDA device 0, at Qwen3-4B's shapes: µs and GB/s of each launch beside a
 * kernel that only reads the same bytes, and of the projections of a whole token in one graph.
 *
 *   npx tsx benchmarks/ops/gemv-cuda.ts [replays: 5] [shapes | tokens | input | layers | l2: all]
 *
 * As in linear-cuda.ts, every figure is the fastest of the replays of a graph that walks once through at least 1.25 GB of
 * distinct random weights, divided by the launches: gaps between kernels are included.
 */
import { ops } from '../../test/support/native-ops'
import '../support/require-cuda'

const replays = Number(process.argv[2] ?? 5)
const only = process.argv[3]
const ringBytes = 1.25e9

interface Shape {
  name: string
  key: 'qkv' | 'o' | 'gateUp' | 'down' | 'head'
  rows: number[]
  K: number
  options: object
}
const shapes: Shape[] = [
  { name: 'norm + q, k, v', key: 'qkv', rows: [4096, 1024, 1024], K: 2560, options: { norm: true } },
  { name: 'o, added', key: 'o', rows: [2560], K: 4096, options: { accumulate: true } },
  {
    name: 'norm + gate, up + SwiGLU',
    key: 'gateUp',
    rows: [9728, 9728],
    K: 2560,
    options: { norm: true, swiglu: true },
  },
  { name: 'down, added', key: 'down', rows: [2560], K: 9728, options: { accumulate: true } },
  { name: 'norm + head', key: 'head', rows: [151936], K: 2560, options: { norm: true } },
]

const row = (...cells: (string | number)[]) =>
  console.log(cells.map((cell, i) => String(cell)[i === 0 ? 'padEnd' : 'padStart'](i === 0 ? 30 : 9)).join(''))
const bytesOf = ({ rows, K }: Shape) => (rows.reduce((sum, N) => sum + N, 0) * K * 9) / 16
const read = (bytes: number): number => ops.readCudaTime!(Math.floor(bytes / 256) * 256, ringBytes, replays)
const time = ({ rows, K, options }: Shape, more: object = {}): number =>
  ops.gemvCudaTime!({ T: 1, rows, K, ringBytes, ...options, ...more }, replays)
const ratio = (value: number) => value.toFixed(2)

function eachShape(): void {
  console.log('One token; "x read" is the time over a plain read of the bytes; overlap: programmatic dependent launch')
  row('', 'read µs', 'µs', 'GB/s', 'x read', 'bare µs', 'overlap', 'GB/s', 'x read', 'residual')
  // The last: what a launch takes with a row for each of an H200's multiprocessors.
  const least: Shape = { name: 'norm + 132 rows', key: 'qkv', rows: [132], K: 2560, options: { norm: true } }
  for (const shape of [...shapes, least]) {
    const bytes = bytesOf(shape)
    const [plain, us, overlapped] = [read(bytes), time(shape), time(shape, { overlap: true })]
    const bare = time({ ...shape, options: {} })
    const rate = (t: number) => (bytes / t / 1e3).toFixed(0)
    row(
      shape.name,
      ratio(plain),
      ratio(us),
      rate(us),
      ratio(us / plain),
      ratio(bare),
      ratio(overlapped),
      rate(overlapped),
      ratio(overlapped / plain),
      ratio(time(shape, { residual: true })),
    )
  }
}

function tokens(): void {
  console.log('\nµs at T tokens')
  const counts = [1, 2, 3, 4, 6, 8]
  row('', ...counts)
  for (const shape of shapes) row(shape.name, ...counts.map((T) => ratio(time(shape, { T }))))
}

/** The gradient of x, with its second launch. */
function input(): void {
  console.log('\nGradient of x at T tokens, µs; "x read" of T 8')
  const counts = [1, 8]
  row('', 'read µs', ...counts, 'x read', 'cuBLASLt')
  for (const shape of shapes) {
    const { rows, K, name } = shape
    const times = counts.map((T): number => ops.gemvBackwardInputCudaTime!({ T, K, rows, ringBytes }, replays))
    const N = rows.reduce((sum, count) => sum + count, 0)
    const blocked = ops.linearCudaTime!('input', 'nvfp4', { T: 8, N, K, ringBytes }, replays)
    const plain = read(bytesOf(shape))
    row(name, ratio(plain), ...times.map(ratio), ratio(times[1]! / plain), ratio(blocked))
  }
}

/** What a launch takes when its weights are in L2: everything but memory. */
function fromL2(): void {
  console.log('\nOne token, weights in L2, µs: alone, overlapping')
  for (const shape of shapes.slice(0, 4)) {
    const [us, overlapped] = [false, true].map((overlap) => time(shape, { ringBytes: 1, launches: 200, overlap }))
    row(shape.name, ratio(us!), ratio(overlapped!))
  }
}

/** Which launches of a token overlap the one before them. */
type Variant = Record<Shape['key'] | 'attention', boolean>
const every = (overlap: boolean): Variant => ({
  qkv: overlap,
  attention: overlap,
  o: overlap,
  gateUp: overlap,
  down: overlap,
  head: overlap,
})

function layers(): void {
  console.log('\nA token of 36 layers and head, µs: no launch overlaps the one before, all do, all but gate and up')
  const plain =
    36 * shapes.slice(0, 4).reduce((sum, shape) => sum + read(bytesOf(shape)), 0) + read(bytesOf(shapes[4]!))
  const variants = [every(false), every(true), { ...every(true), gateUp: false }]
  for (const [name, T, context] of [
    ['projections', 1, 0],
    ['attention over 512 too', 1, 512],
    ['projections of 8 tokens', 8, 0],
  ] as const) {
    const times = ops.gemvLayersCudaTime!({ T, layers: 36, context, variants }, replays) as number[]
    row(name, ...times.map((us) => us.toFixed(1)), `  plain reads ${plain.toFixed(1)}`)
  }
}

if (!only || only === 'shapes') eachShape()
if (!only || only === 'tokens') tokens()
if (!only || only === 'input') input()
if (!only || only === 'layers') layers()
if (!only || only === 'l2') fromL2()
