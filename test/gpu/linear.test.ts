/** Matrix products on CUDA. Needs a CUDA device and cuBLASLt: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { expectClose, ops, seededValues } from '../support/native-ops'
import { seededWeight, type Weight, type WeightKind } from '../support/weights'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

const KINDS: WeightKind[] = ['nvfp4', 'nvfp4+residual', 'bf16']

/** Few tokens: 1, odd, around the tile of 8 or 16 rows, the block of 16, the unit of 512 columns; a model's. */
const FEW: [T: number, N: number, K: number][] = [
  [1, 1, 16],
  [1, 8, 256],
  [2, 7, 32],
  [3, 9, 48],
  [4, 64, 128],
  [5, 33, 272],
  [6, 130, 288],
  [7, 515, 240],
  [8, 1100, 512],
  [1, 2560, 1024],
  [8, 40, 9728],
]
/** Many tokens. */
const MANY: [T: number, N: number, K: number][] = [
  [9, 40, 320],
  [33, 200, 256],
  [130, 31, 592],
  [16, 700, 400],
]
/** Slices of 128 rows or 64 columns, which the larger of these shapes have several of; and the default, one slice. */
const SLICES = [{ sliceBytes: 0 }, {}]
const THREADS = { threads: 16 }

/**
 * bf16 output: 8 significant bits, so half a unit in the last place is up to 2^-8 of the value, twice that where a residual
 * rounds a second time. f32 sums in the tensor cores, 16 columns a step, truncate: up to 2^-23 of a partial sum of about
 * size · sqrt(K) a step, with one sign, and as much again for the products they align; `size`, the RMS of one product, is
 * up to 0.41. Twice that.
 */
const atol = (K: number) => 2 ** -23 * (K / 4) * 0.41 * Math.sqrt(K) + 1e-6
const rtol = (kind: WeightKind, f32: boolean) => (f32 ? 1e-6 : 2 ** (kind === 'nvfp4+residual' ? -7 : -8) + 1e-6)

/** An output that no element may leave as it was. */
const poisoned = (count: number, f32: boolean) =>
  f32 ? new Float32Array(count).fill(NaN) : new Uint16Array(count).fill(0x7fc0)
const values = (array: Float32Array | Uint16Array) => (array instanceof Float32Array ? array : fromBf16(array))

const rowsOf = (weight: Weight | Weight[]) => [weight].flat().reduce((sum, part) => sum + part.rows, 0)

function linear(x: Uint16Array, weight: Weight | Weight[], T: number, f32: boolean, options: object = {}) {
  const y = poisoned(T * rowsOf(weight), f32)
  ops.linearCuda!(y, x, weight, T, false, options)
  return values(y)
}

function reference(x: Uint16Array, weight: Weight, T: number): Float32Array {
  const y = new Float32Array(T * weight.rows)
  ops.linearReference!(y, fromBf16(x), weight, T, { isa: 'portable', ...THREADS })
  return y
}

withCuda(`matrix products on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each(KINDS)('linear is x · wᵀ with few tokens and with many, weight in %s', (kind) => {
    for (const [T, N, K] of [...FEW, ...MANY]) {
      const weight = seededWeight(kind, N, K, N + K)
      const x = toBf16(seededValues(T * K, T + 11))
      const expected = reference(x, weight, T)
      for (const [f32, slices] of [
        [true, SLICES[0]],
        [true, SLICES[1]],
        [false, SLICES[0]],
      ] as const) {
        // A bf16 y of two products also rounds the first, which is up to about the largest of the sums.
        const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
        const first = kind === 'nvfp4+residual' && !f32 ? 2 ** -8 * largest : 0
        expectClose(linear(x, weight, T, f32, slices), expected, atol(K) + first, rtol(kind, f32))
      }
    }
  })

  it('decodes every code under every scale exactly', () => {
    const scales = Uint8Array.from({ length: 127 * 2 }, (_, i) => i >> 1) // 0x00 to 0x7e; 0x7f is NaN
    const codes = Uint8Array.from({ length: 127 * 16 }, (_, i) => (2 * (i % 8)) | ((2 * (i % 8) + 1) << 4))
    const weight: Weight = { storage: 'nvfp4', rows: 127, cols: 32, codes, scales, globalScale: 0.25 }
    const dense = new Float32Array(127 * 32)
    ops.dequantizeRows!(dense, weight, 0, 127, { isa: 'portable' })
    // Token t of a group reads out one column: x is a row of the unit matrix.
    for (const T of [1, 8]) {
      for (let from = 0; from < 32; from += T) {
        const x = new Uint16Array(T * 32)
        for (let t = 0; t < T; t++) x[t * 32 + from + t] = 0x3f80
        const y = linear(x, weight, T, true)
        const expected = Float32Array.from({ length: T * 127 }, (_, i) => {
          return dense[(i % 127) * 32 + from + Math.floor(i / 127)]! + 0 // -0 becomes 0, as sums make it
        })
        expect(y.map((value) => value + 0)).toEqual(expected)
      }
    }
  })

  it('gives a token the same bytes among two to eight', () => {
    const [T, N, K] = [8, 523, 1296]
    const weight = seededWeight('nvfp4', N, K, 9)
    const x = toBf16(seededValues(T * K, 10))
    const batch = linear(x, weight, T, true)
    for (const count of [2, 3, 5, 7]) {
      const some = linear(x.slice(0, count * K), weight, count, true)
      expect(some).toEqual(batch.slice(0, count * N))
    }
  })

  it('adds to what y holds', () => {
    for (const kind of KINDS) {
      for (const [T, N, K] of [
        [3, 41, 272],
        [17, 130, 256],
      ] as const) {
        const weight = seededWeight(kind, N, K, 5)
        const x = toBf16(seededValues(T * K, 6))
        const before = seededValues(T * N, 7)
        const y = before.slice()
        ops.linearCuda!(y, x, weight, T, true)
        const expected = reference(x, weight, T).map((value, i) => value + before[i]!)
        expectClose(y, expected, atol(K), 1e-6)
      }
    }
  })

  it('the gradient of x is dy · w, in one slice and in several', () => {
    for (const kind of KINDS) {
      for (const [T, N, K] of [...MANY, [1, 48, 64], [5, 33, 272]] as const) {
        const weight = seededWeight(kind, N, K, N + K)
        const dy = toBf16(seededValues(T * N, T + 3))
        const expected = new Float32Array(T * K)
        ops.linearBackwardInput!(expected, fromBf16(dy), weight, T, false, THREADS)
        for (const slices of SLICES) {
          const dx = poisoned(T * K, false)
          ops.linearBackwardInputCuda!(dx, dy, weight, T, false, slices)
          // One rounding in all, also of two products.
          const once = values(dx)
          expectClose(once, expected, 2 * atol(N), 2 ** -8 + 1e-5)
          const twice = (dx as Uint16Array).slice()
          ops.linearBackwardInputCuda!(twice, dy, weight, T, true, slices)
          expectClose(
            values(twice),
            expected.map((value, i) => value + once[i]!),
            2 * atol(N),
            2 ** -8 + 1e-5,
          )
        }
      }
    }
  })

  it('the gradient of w is dyᵀ · x over any range of rows', () => {
    const [N, K] = [70, 144]
    for (const T of [1, 7, 64, 300]) {
      const [dy, x] = [toBf16(seededValues(T * N, 1)), toBf16(seededValues(T * K, 2))]
      for (const [begin, count] of [
        [0, N],
        [16, 32],
        [33, 37],
      ] as const) {
        const expected = new Float32Array(count * K)
        ops.linearBackwardWeight!(expected, fromBf16(dy), fromBf16(x), T, N, K, begin, count, false, {})
        for (const f32 of [true, false]) {
          const dw = poisoned(count * K, f32)
          ops.linearBackwardWeightCuda!(dw, dy, x, T, N, K, begin, count, false)
          expectClose(values(dw), expected, 2 * atol(T), rtol('bf16', f32))
          if (!f32) continue
          ops.linearBackwardWeightCuda!(dw, dy, x, T, N, K, begin, count, true)
          expectClose(
            values(dw),
            expected.map((value) => 2 * value),
            4 * atol(T),
            1e-6,
          )
        }
      }
    }
  })

  it('gives equal bytes twice', () => {
    for (const [T, N, K] of [...FEW.slice(4), ...MANY]) {
      const weight = seededWeight('nvfp4', N, K, 3)
      const [x, dy] = [toBf16(seededValues(T * K, 4)), toBf16(seededValues(T * N, 5))]
      const run = () => {
        const [dx, dw] = [poisoned(T * K, false), poisoned(N * K, true)]
        ops.linearBackwardInputCuda!(dx, dy, weight, T, false)
        ops.linearBackwardWeightCuda!(dw, dy, x, T, N, K, 0, N, false)
        return [linear(x, weight, T, false), values(dx), values(dw)]
      }
      const [first, second] = [run(), run()]
      first.forEach((array, i) => {
        expect(Buffer.compare(Buffer.from(array.buffer), Buffer.from(second[i]!.buffer))).toBe(0)
      })
    }
  })

  it('multiplies a stack of weights as one', () => {
    const K = 272
    const of = (kind: WeightKind, globalScale: number, N: number) => ({ ...seededWeight(kind, N, K, N), globalScale })
    const stacks: Record<string, Weight[]> = {
      'one scale': [of('nvfp4', 0.3, 300), of('nvfp4', 0.3, 70), of('nvfp4', 0.3, 33)],
      'powers of two': [of('nvfp4', 0.25, 40), of('nvfp4', 2 ** -12, 300), of('nvfp4', 4, 1)],
      'any scales': [of('nvfp4', 0.3, 40), of('nvfp4', 0.7, 300)],
      residuals: [of('nvfp4+residual', 0.25, 40), of('nvfp4', 0.25, 130)],
      dense: [of('bf16', 1, 40), of('nvfp4', 0.25, 130)],
    }
    for (const stack of Object.values(stacks)) {
      const N = rowsOf(stack)
      for (const T of [1, 5, 40]) {
        const [x, dy] = [toBf16(seededValues(T * K, 1)), toBf16(seededValues(T * N, 2))]
        const y = new Float32Array(T * N)
        const dx = new Float32Array(T * K)
        const wide = fromBf16(dy)
        const columns = (from: number, count: number) => wide.filter((_, i) => i % N >= from && i % N < from + count)
        let first = 0
        for (const part of stack) {
          reference(x, part, T).forEach((value, i) => {
            y[Math.floor(i / part.rows) * N + first + (i % part.rows)] = value
          })
          ops.linearBackwardInput!(dx, columns(first, part.rows), part, T, true, THREADS)
          first += part.rows
        }
        const largest = y.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
        for (const slices of SLICES) {
          expectClose(linear(x, stack, T, true, slices), y, 4 * atol(K), 1e-6)
          expectClose(linear(x, stack, T, false, slices), y, 4 * atol(K) + 2 ** -8 * largest, 2 ** -8)
          const ours = poisoned(T * K, false)
          ops.linearBackwardInputCuda!(ours, dy, stack, T, false, slices)
          expectClose(values(ours), dx, 16 * atol(N), 2 ** -8 + 1e-5)
        }
      }
    }
  })

  it('reads the packed weight eight tokens at a time when asked to', () => {
    for (const kind of ['nvfp4', 'nvfp4+residual'] as const) {
      const [T, N, K] = [21, 130, 272]
      const weight = seededWeight(kind, N, K, 3)
      const x = toBf16(seededValues(T * K, 4))
      const y = linear(x, weight, T, true, { gemvTokens: 32 })
      expectClose(y, reference(x, weight, T), atol(K), 1e-6)
      expect(y.slice(16 * N)).toEqual(linear(x.slice(16 * K), weight, 5, true))
    }
  })

  it('writes zeros when there is nothing to sum', () => {
    const dw = new Float32Array(64).fill(NaN)
    ops.linearBackwardWeightCuda!(dw, new Uint16Array(0), new Uint16Array(0), 0, 4, 16, 0, 4, false)
    expect(dw).toEqual(new Float32Array(64))
  })

  it('refuses dense weights that are not bf16', () => {
    const refused = () => linear(new Uint16Array(16), seededWeight('f32', 4, 16, 1), 1, false)
    expect(refused).toThrow('dense weights on CUDA are bf16')
  })
})

if (probe.devices === 0) {
  it('says why there is no CUDA', () => {
    const asked = () =>
      ops.linearCuda!(new Uint16Array(4), new Uint16Array(16), seededWeight('nvfp4', 4, 16, 1), 1, false)
    expect(asked).toThrow('CUDA cannot be used')
  })
}
