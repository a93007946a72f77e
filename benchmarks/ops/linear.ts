/**
 * Matrix products: GB/s of NVFP4 and NF4 matrix-vector products at Qwen3-4B's shapes as a fraction of the machine's read
 * bandwidth, and GFLOP/s of the blocked products as a fraction of OpenBLAS, each pair measured in turn in one run.
 *
 *   npx tsx benchmarks/ops/linear.ts [threads: all] [isa: best] [rounds: 9]
 *
 * All figures are medians. Weights and activations are random and never zero. The matrix-vector products walk through
 * 2.25 GiB of packed weights, and so does the plain sum that measures the bandwidth, so that nothing is still in a cache
 * when it is read again. OpenBLAS (Debian's libopenblas-dev) is optional: without gcc or the library its columns are empty.
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { availableParallelism, cpus, tmpdir } from 'node:os'
import { join } from 'node:path'
import { ops, seededValues, type OpOptions } from '../../test/support/native-ops'
import type { Weight } from '../../test/support/weights'

const threads = Number(process.argv[2] ?? availableParallelism())
const isa = process.argv[3] as OpOptions['isa']
const rounds = Number(process.argv[4] ?? 9)
const options: OpOptions = isa ? { threads, isa } : { threads }

const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1]!
function seconds(run: () => void): number {
  const start = performance.now()
  run()
  return (performance.now() - start) / 1000
}
const percent = (part: number) => `${(100 * part).toFixed(0)} %`
const row = (...cells: (string | number)[]) =>
  console.log(cells.map((cell, i) => String(cell)[i === 0 ? 'padEnd' : 'padStart'](i === 0 ? 34 : 15)).join(''))

/** `bytes` of seeded random bytes in [low, high], made once and copied on. */
function randomBytes(bytes: number, seed: number, low: number, high: number): Uint8Array {
  const first = Uint8Array.from(seededValues(1 << 22, seed), (v) => low + Math.floor(((v + 1) / 2) * (high - low + 1)))
  const all = new Uint8Array(bytes)
  for (let at = 0; at < bytes; at += first.length) all.set(first.subarray(0, Math.min(first.length, bytes - at)), at)
  return all
}

/** Weights of any shape, one after the other through the same 2 GiB of codes and 256 MiB of scales, round and round. */
class WeightRing {
  readonly #codes = randomBytes(2 ** 31, 1, 0, 255)
  readonly #scales = randomBytes(2 ** 28, 2, 0x28, 0x3c)
  readonly #absmax = new Float32Array(randomBytes(2 ** 28, 3, 0x3c, 0x3d).buffer)
  #block = 0

  next(rows: number, cols: number): Weight {
    const blocks = (rows * cols) / 16
    if (this.#block + blocks > this.#scales.length) this.#block = 0
    const from = this.#block
    this.#block += blocks
    const codes = this.#codes.subarray(8 * from, 8 * this.#block)
    return { storage: 'nvfp4', rows, cols, codes, scales: this.#scales.subarray(from, this.#block), globalScale: 0.3 }
  }

  /** NF4 has as many bytes of magnitudes as NVFP4 of scales: its magnitudes are this other 256 MiB. */
  nextNf4(rows: number, cols: number): Weight {
    const { codes } = this.next(rows, cols)
    const blocks = (rows * cols) / 64
    const from = this.#block / 4 - blocks
    return { storage: 'bnb4', codebook: 'nf4', rows, cols, codes, absmax: this.#absmax.subarray(from, from + blocks) }
  }

  nextBytes(bytes: number): Uint8Array {
    return this.next(bytes / 8, 16).codes!
  }
}

function matrixVector(ring: WeightRing, form: 'NVFP4' | 'NF4'): void {
  const shapes: [string, N: number, K: number][] = [
    ['q_proj', 4096, 2560],
    ['k_proj, v_proj', 1024, 2560],
    ['o_proj', 2560, 4096],
    ['gate_proj, up_proj', 9728, 2560],
    ['down_proj', 2560, 9728],
  ]
  console.log(`\n${form} matrix-vector product, ${threads} threads`)
  row('weight [N, K]', 'µs', 'GB/s', 'read GB/s', 'fraction')
  for (const [name, N, K] of shapes) {
    for (const T of name === 'gate_proj, up_proj' ? [1, 2, 4, 8] : [1]) {
      const x = seededValues(T * K, 3)
      const y = new Float32Array(T * N)
      const bytes = (N * K * 9) / 16
      const repeats = Math.ceil(2 ** 27 / bytes)
      const [product, read]: [number[], number[]] = [[], []]
      for (let round = 0; round < rounds; round++) {
        const slice = ring.nextBytes(2 ** 27)
        read.push(2 ** 27 / seconds(() => ops.readWords!(slice, options)))
        const weights = Array.from({ length: repeats }, () => (form === 'NF4' ? ring.nextNf4(N, K) : ring.next(N, K)))
        product.push(seconds(() => weights.forEach((w) => ops.linear!(y, x, w, T, false, options))) / repeats)
      }
      const [time, bandwidth] = [median(product), median(read)]
      const rate = bytes / time
      row(
        `${name} [${N}, ${K}] T ${T}`,
        (time * 1e6).toFixed(0),
        (rate / 1e9).toFixed(1),
        (bandwidth / 1e9).toFixed(1),
        percent(rate / bandwidth),
      )
    }
  }
}

/** Builds benchmarks/support/openblas-bench.c; the returned function gives the times of c[m, n] = a[m, k] · b. */
function openBlas(
  folder: string,
): ((m: number, n: number, k: number, b: 't' | 'n', repeats: number) => number[]) | undefined {
  const program = join(folder, 'openblas-bench')
  const source = join(import.meta.dirname, '../support/openblas-bench.c')
  try {
    execFileSync('gcc', ['-O2', '-o', program, source, '-lopenblas'], { stdio: 'pipe' })
  } catch (error) {
    console.log(`\nOpenBLAS is left out: ${(error as Error).message.split('\n').slice(0, 2).join(' ')}`)
    return undefined
  }
  return (...args) =>
    execFileSync(program, [threads, ...args].map(String), { encoding: 'utf8' })
      .trim()
      .split('\n')
      .map(Number)
}

function blocked(ring: WeightRing): void {
  const folder = mkdtempSync(join(tmpdir(), 'qwen3-nvfp4-'))
  const peer = openBlas(folder)
  console.log(`\nBlocked products, ${threads} threads; OpenBLAS multiplies f32 of the same shape`)
  row('product', 'ms', 'GFLOP/s', 'OpenBLAS', 'ratio')
  const compare = (name: string, [m, n, k]: [number, number, number], b: 't' | 'n', run: () => void) => {
    const flops = 2 * m * n * k
    const repeats = Math.max(3, Math.ceil(2e9 / flops))
    const [ours, theirs]: [number[], number[]] = [[], []]
    run()
    for (let round = 0; round < rounds; round++) {
      for (let i = 0; i < repeats; i++) ours.push(seconds(run))
      theirs.push(...(peer?.(m, n, k, b, repeats) ?? []))
    }
    const time = median(ours)
    const other = theirs.length > 0 ? median(theirs) : undefined
    row(
      name,
      (time * 1e3).toFixed(2),
      (flops / time / 1e9).toFixed(1),
      other ? (flops / other / 1e9).toFixed(1) : '',
      other ? percent(other / time) : '',
    )
  }
  const dense = (N: number, K: number): Weight => ({ storage: 'f32', rows: N, cols: K, dense: seededValues(N * K, 5) })
  try {
    const [x, y, w] = [seededValues(512 * 512, 4), new Float32Array(512 * 512), dense(512, 512)]
    compare('f32 y = x · wᵀ 512³', [512, 512, 512], 't', () => ops.linear!(y, x, w, 512, false, options))
    compare('f32 dx = dy · w 512³', [512, 512, 512], 'n', () => ops.linearBackwardInput!(y, x, w, 512, false, options))
    for (const [T, N, K] of [
      [16, 2560, 4096],
      [128, 2560, 4096],
      [512, 2560, 4096],
    ] as const) {
      const [xs, dy] = [seededValues(T * K, 6), seededValues(T * N, 7)]
      const [ys, dx, dw] = [new Float32Array(T * N), new Float32Array(T * K), new Float32Array(N * K)]
      const f32 = dense(N, K)
      compare(`f32 y T ${T} [${N}, ${K}]`, [T, N, K], 't', () => ops.linear!(ys, xs, f32, T, false, options))
      compare(`NVFP4 y T ${T}`, [T, N, K], 't', () => ops.linear!(ys, xs, ring.next(N, K), T, false, options))
      compare(`NVFP4 dx T ${T}`, [T, K, N], 'n', () =>
        ops.linearBackwardInput!(dx, dy, ring.next(N, K), T, false, options),
      )
      compare(`f32 dw T ${T}`, [N, K, T], 'n', () =>
        ops.linearBackwardWeight!(dw, dy, xs, T, N, K, 0, N, false, options),
      )
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

console.log(
  `${cpus()[0]!.model}, ${availableParallelism()} cores, node ${process.version}, isa ${isa ?? 'best'}, medians of ${rounds} rounds`,
)
const ring = new WeightRing()
matrixVector(ring, 'NVFP4')
matrixVector(ring, 'NF4')
blocked(ring)
