/** The matrix-vector product with bitsandbytes weights. Needs a CUDA device: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { CODEBOOKS, codebookNames, decodeBnb4, seededBnb4 } from '../support/bnb4'
import { expectClose, expectSameBytes, ops, seededValues } from '../support/native-ops'
import type { Weight } from '../support/weights'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

/** One, odd, around the rows of a warp (4), a block (64) and a step of a warp (512); K of one, two and four splits. */
const FEW: [T: number, N: number, K: number][] = [
  [1, 1, 64],
  [1, 3, 128],
  [1, 4, 448],
  [2, 5, 512],
  [3, 33, 576],
  [4, 131, 1024],
  [5, 7, 2560],
  [6, 1100, 192],
  [7, 66, 2624],
  [8, 515, 320],
  [1, 33, 3072],
  [3, 12, 5184],
  [8, 40, 9728],
]
const MODEL: [N: number, K: number][] = [
  [4096, 2560],
  [1024, 2560],
  [2560, 4096],
  [9728, 2560],
  [2560, 9728],
]
const THREADS = { threads: 16 }

/** f32 sums of K products of about a fifth. */
const atol = (K: number) => 2 ** -24 * 2 * K * 0.2 + 1e-7

function linear<T extends Float32Array | Uint16Array>(y: T, x: Uint16Array, weight: Weight, count: number): T {
  ops.linearCuda!(y, x, weight, count, false)
  return y
}

/** -0 becomes 0, as sums make it. */
const plusZero = (value: number) => value + 0

const toF32 = (x: Uint16Array, weight: Weight, T: number) =>
  linear(new Float32Array(T * weight.rows).fill(NaN), x, weight, T)
const toHalves = (x: Uint16Array, weight: Weight, T: number) =>
  fromBf16(linear(new Uint16Array(T * weight.rows).fill(0x7fc0), x, weight, T))

function reference(x: Uint16Array, weight: Weight, T: number): Float32Array {
  const y = new Float32Array(T * weight.rows)
  ops.linearReference!(y, fromBf16(x), weight, T, THREADS)
  return y
}

withCuda(`matrix-vector products with bitsandbytes weights on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each(codebookNames)('multiply up to eight tokens by the values of %s themselves', (codebook) => {
    for (const [T, N, K] of FEW) {
      const weight = seededBnb4(codebook, N, K, N + K)
      const x = toBf16(seededValues(T * K, T + 11))
      const expected = reference(x, weight, T)
      expectClose(toF32(x, weight, T), expected, atol(K), 1e-6)
      expectClose(toHalves(x, weight, T), expected, atol(K), 2 ** -8 + 1e-6)
    }
  })

  it.each(MODEL)("multiply by Qwen3-4B's [%i, %i]", (N, K) => {
    const weight = seededBnb4('nf4', N, K, 3)
    for (const T of [1, 2, 3, 8]) {
      const x = toBf16(seededValues(T * K, T))
      expectClose(toF32(x, weight, T), reference(x, weight, T), atol(K), 1e-6)
    }
  })

  it.each(codebookNames)('decode every code of %s exactly, in each byte of a block', (codebook) => {
    // Row n has its codes shifted by n; x is a row of the unit matrix, so that a token reads out one column.
    const [N, K] = [16, 128]
    const codes = Uint8Array.from({ length: (N * K) / 2 }, (_, i) => {
      const shift = Math.floor((2 * i) / K)
      return ((2 * i + shift) & 15) | (((2 * i + 1 + shift) & 15) << 4)
    })
    const absmax = seededValues((N * K) / 64, 4, 3).map(Math.abs)
    const weight: Weight = { storage: 'bnb4', codebook, rows: N, cols: K, codes, absmax }
    expect(new Set(decodeBnb4({ ...weight, absmax: absmax.fill(1) }))).toEqual(new Set(CODEBOOKS[codebook]))
    absmax.set(seededValues(absmax.length, 4, 3).map(Math.abs))
    for (const T of [1, 2, 8]) {
      const w = decodeBnb4(weight)
      for (let from = 0; from < K; from += T) {
        const x = new Uint16Array(T * K)
        for (let t = 0; t < T; t++) x[t * K + from + t] = 0x3f80
        const expected = Float32Array.from({ length: T * N }, (_, i) =>
          plusZero(w[(i % N) * K + from + Math.floor(i / N)]!),
        )
        expectSameBytes(toF32(x, weight, T).map(plusZero), expected)
      }
    }
  })

  it('give a token the same bytes alone and among others, and twice', () => {
    const [N, K] = [523, 2624]
    const weight = seededBnb4('nf4', N, K, 9)
    const x = toBf16(seededValues(8 * K, 10))
    const batch = toF32(x, weight, 8)
    expectSameBytes(toF32(x, weight, 8), batch)
    for (let T = 1; T < 8; T++) {
      expectSameBytes(toF32(x.slice(0, T * K), weight, T), batch.slice(0, T * N))
      expectSameBytes(toF32(x.slice((8 - T) * K), weight, T), batch.slice((8 - T) * N))
    }
  })

  it('give the same bytes whichever rows stand around a row, with more blocks than are resident', () => {
    const [N, K] = [132 * 8 * 40 + 3, 512]
    const weight = seededBnb4('fp4', N, K, 6)
    const last: Weight = {
      ...weight,
      rows: 101,
      codes: weight.codes!.subarray(-101 * (K / 2)),
      absmax: weight.absmax!.subarray(-101 * (K / 64)),
    }
    for (const T of [1, 5]) {
      const x = toBf16(seededValues(T * K, 5))
      const [all, some] = [toF32(x, weight, T), toF32(x, last, T)]
      expect(all.some(Number.isNaN)).toBe(false)
      for (let t = 0; t < T; t++) {
        expectSameBytes(some.slice(t * 101, (t + 1) * 101), all.slice((t + 1) * N - 101, (t + 1) * N))
      }
    }
  })
})

if (probe.devices === 0) {
  it('says why there is no CUDA', () => {
    const weight = seededBnb4('nf4', 4, 64, 1)
    expect(() => toF32(new Uint16Array(64), weight, 1)).toThrow('CUDA cannot be used')
  })
}
