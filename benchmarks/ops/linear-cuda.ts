/**
 * Matrix products on CUDA device 0: GB/s of NVFP4 matrix-vector products at Qwen3-4B's shapes as a fraction of what a
 * kernel that only reads the same bytes reaches, and TFLOP/s of the blocked products beside plain bf16 cuBLASLt.
 *
 *   npx tsx benchmarks/ops/linear-cuda.ts [replays: 5] [gemv | gemm | slices | few | stacks: the first two]
 *
 * Every figure is the fastest of the replays of one CUDA graph that walks once through at least 1.25 GB of distinct random
 * weights, so that nothing is still in L2, and divides by the number of launches: gaps between kernels are included, as
 * they are in a model. `read` is the plain read in launches of the same number of bytes, with the same gaps.
 */
import { ops } from '../../test/support/native-ops'
import '../support/require-cuda'

const replays = Number(process.argv[2] ?? 5)
const only = process.argv[3]
const ringBytes = 1.25e9

type Product = 'forward' | 'input' | 'weight'
const shapes: [name: string, N: number, K: number][] = [
  ['qkv_proj', 6144, 2560],
  ['o_proj', 2560, 4096],
  ['gate_up_proj', 19456, 2560],
  ['down_proj', 2560, 9728],
  ['lm_head', 151936, 2560],
]

const row = (...cells: (string | number)[]) =>
  console.log(cells.map((cell, i) => String(cell)[i === 0 ? 'padEnd' : 'padStart'](i === 0 ? 36 : 12)).join(''))
const percent = (part: number) => `${(100 * part).toFixed(0)} %`
const gigabytes = (bytes: number, microseconds: number) => bytes / microseconds / 1e3
const time = (product: Product, storage: 'nvfp4' | 'bf16', dims: object): number =>
  ops.linearCudaTime!(product, storage, { ringBytes, ...dims }, replays)

/** Bytes of a read that is one launch, in whole 16-byte loads. */
const read = (bytes: number): number => ops.readCudaTime!(Math.floor(bytes / 256) * 256, ringBytes, replays)

function matrixVector(): void {
  const large = 2 ** 30
  const limit = gigabytes(large, read(large))
  const copy = gigabytes(2 * large, ops.copyCudaTime!(large, large, replays))
  console.log(`read ${limit.toFixed(0)} GB/s, copy ${copy.toFixed(0)} GB/s (read + written), 1 GiB each`)
  console.log('\nNVFP4 matrix-vector product')
  row('weight [N, K]', 'µs', 'GB/s', 'of limit', 'read µs', 'of read')
  for (const [name, N, K] of shapes) {
    const bytes = (N * K * 9) / 16
    const plain = read(bytes)
    for (const T of [1, 2, 4, 8]) {
      const us = time('forward', 'nvfp4', { T, N, K })
      const rate = gigabytes(bytes, us)
      row(
        `${name} [${N}, ${K}] T ${T}`,
        us.toFixed(2),
        rate.toFixed(0),
        percent(rate / limit),
        plain.toFixed(2),
        percent(plain / us),
      )
    }
  }
}

function blocked(): void {
  console.log('\nBlocked products; "ratio" is plain bf16 cuBLASLt over ours')
  row('product', 'µs', 'TFLOP/s', 'bf16 µs', 'TFLOP/s', 'ratio')
  for (const T of [16, 64, 512, 2048]) {
    for (const [name, N, K] of shapes.slice(0, 4)) {
      for (const product of ['forward', 'input'] as const) {
        const [ours, plain] = [time(product, 'nvfp4', { T, N, K }), time(product, 'bf16', { T, N, K })]
        const rate = (us: number) => ((2 * T * N * K) / us / 1e6).toFixed(0)
        const label = `${product} ${name} T ${T}`
        row(label, ours.toFixed(1), rate(ours), plain.toFixed(1), rate(plain), percent(plain / ours))
      }
    }
  }
  row('weight gradient, bf16', 'µs', 'TFLOP/s')
  for (const T of [512, 2048]) {
    for (const [name, N, K] of shapes.slice(0, 4)) {
      const us = time('weight', 'bf16', { T, N, K, ringBytes: 20 * 2 * N * K })
      row(`weight ${name} T ${T}`, us.toFixed(1), ((2 * T * N * K) / us / 1e6).toFixed(0))
    }
  }
}

/** Small slices stay in L2; large ones give cuBLASLt fuller waves. */
function slices(): void {
  console.log('\nslices: µs at MiB')
  const sizes = [8, 16, 24, 32, 48, 64, 96, 128]
  row('product', ...sizes, 'bf16')
  for (const T of [512, 2048]) {
    for (const product of ['forward', 'input'] as const) {
      for (const [name, N, K] of shapes.slice(0, 4)) {
        const times = sizes.map((MiB) => time(product, 'nvfp4', { T, N, K, sliceBytes: MiB * 2 ** 20 }).toFixed(1))
        row(`${product} ${name} T ${T}`, ...times, time(product, 'bf16', { T, N, K }).toFixed(1))
      }
    }
  }
}

/** Few tokens: the packed weight read once for every eight tokens, or decoded to scratch once. */
function fewTokens(): void {
  console.log('\nfew tokens: µs')
  row('forward', 'packed', 'decoded', 'bf16')
  for (const T of [16, 24, 32, 48, 64]) {
    for (const [name, N, K] of shapes) {
      const dims = { T, N, K, sliceBytes: 96 * 2 ** 20 }
      const us = [64, 8].map((gemvTokens) => time('forward', 'nvfp4', { ...dims, gemvTokens }).toFixed(1))
      row(`${name} T ${T}`, ...us, time('forward', 'bf16', { T, N, K }).toFixed(1))
    }
  }
}

/** Weights of the same input as one product, against one after the other. */
function stacks(): void {
  console.log('\nstacks: µs')
  row('product', 'stack', 'each', 'one weight')
  for (const T of [64, 512, 2048]) {
    for (const product of ['forward', 'input'] as const) {
      for (const [name, N, K, parts] of [
        ['qkv as thirds', 6144, 2560, 3],
        ['gate, up', 19456, 2560, 2],
      ] as const) {
        const dims = { T, N, K, sliceBytes: 96 * 2 ** 20 }
        const each = parts * time(product, 'nvfp4', { ...dims, N: N / parts })
        const us = [time(product, 'nvfp4', { ...dims, parts }), each, time(product, 'nvfp4', dims)]
        row(`${product} ${name} T ${T}`, ...us.map((t) => t.toFixed(1)))
      }
    }
  }
}

if (!only || only === 'gemv') matrixVector()
if (!only || only === 'gemm') blocked()
if (only === 'slices') slices()
if (only === 'few') fewTokens()
if (only === 'stacks') stacks()
