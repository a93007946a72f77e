/** The matrix-vector product of several weights with what stands before and after it. Needs a CUDA device: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { expectClose, expectSameBytes, ops, seededValues } from '../support/native-ops'
import { seededWeight, type Weight, type WeightKind } from '../support/weights'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

/** A kernel that overlaps has a longer ring for one token. */
const LAYOUTS = [{}, { overlap: true }]

/** As in linear.test.ts: truncating f32 sums in the tensor cores. */
const atol = (K: number) => 2 ** -23 * (K / 4) * 0.41 * Math.sqrt(K) + 1e-6

const poisoned = (count: number) => new Uint16Array(count).fill(0x7fc0)

function reference(x: Uint16Array, weight: Weight, T: number): Float32Array {
  const y = new Float32Array(T * weight.rows)
  ops.linearReference!(y, fromBf16(x), weight, T, { isa: 'portable', threads: 16 })
  return y
}

function plus(a: Float32Array, bits: Uint16Array): Float32Array {
  const b = fromBf16(bits)
  return a.map((value, i) => value + b[i]!)
}

function gemv(x: Uint16Array, weights: Weight[], T: number, options: object = {}): Uint16Array[] {
  const ys = weights.map((weight) => poisoned(T * weight.rows))
  ops.gemvCuda!(ys, x, weights, T, options)
  return ys
}

/** `rows` rows, again and again those of a weight. */
function repeated(weight: Weight, rows: number): Weight {
  const fill = (source: Uint8Array) => {
    const bytes = new Uint8Array((source.length / weight.rows) * rows)
    for (let at = 0; at < bytes.length; at += source.length) bytes.set(source.subarray(0, bytes.length - at), at)
    return bytes
  }
  return { ...weight, rows, codes: fill(weight.codes!), scales: fill(weight.scales!) }
}

function normalised(x: Uint16Array, norm: Float32Array, T: number): Uint16Array {
  const y = poisoned(x.length)
  ops.rmsNormCuda!(y, null, x, norm, T, norm.length, 1e-6)
  return y
}

withCuda(`matrix-vector products on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it('multiplies up to three weights in one launch, whatever the layout', () => {
    for (const [T, K, rows] of [
      [1, 512, [1]],
      [1, 1024, [7, 1, 9]],
      [1, 2560, [1024, 256, 256]],
      [1, 4096, [640]],
      [1, 9728, [515]],
      [1, 272, [33, 16]],
      [2, 1536, [130, 8]],
      [3, 512, [17, 40, 300]],
      [5, 2560, [96]],
      [8, 4096, [133, 31]],
      [8, 9728, [300]],
    ] as const) {
      const x = toBf16(seededValues(T * K, T + 3))
      const weights = rows.map((N, i) => seededWeight('nvfp4', N, K, N + i))
      const expected = weights.map((weight) => reference(x, weight, T))
      for (const layout of T === 1 && K % 512 === 0 ? LAYOUTS : [{}]) {
        gemv(x, weights, T, layout).forEach((y, i) => {
          expectClose(fromBf16(y), expected[i]!, atol(K), 2 ** -8 + 1e-6)
        })
      }
    }
  })

  it('takes more blocks than are resident when there are many rows, to the same bytes', () => {
    const [N, K] = [132 * 8 * 200 + 3, 512]
    const weight = repeated(seededWeight('nvfp4', 1009, K, 6), N)
    const last: Weight = {
      ...weight,
      rows: 100,
      codes: weight.codes!.subarray(-100 * (K / 2)),
      scales: weight.scales!.subarray(-100 * (K / 16)),
    }
    for (const T of [1, 8]) {
      const x = toBf16(seededValues(T * K, 5))
      const [all] = gemv(x, [weight], T)
      expect(fromBf16(all!).some(Number.isNaN)).toBe(false)
      const [some] = gemv(x, [last], T)
      for (let t = 0; t < T; t++) {
        expectSameBytes(some!.subarray(t * 100, t * 100 + 100), all!.subarray((t + 1) * N - 100, (t + 1) * N))
      }
    }
  })

  it('rounds a residual together with its weight', () => {
    for (const [T, N, K] of [
      [1, 130, 2560],
      [6, 41, 512],
      [2, 30, 80],
    ] as const) {
      const weights = (['nvfp4+residual', 'nvfp4'] as WeightKind[]).map((kind, i) => seededWeight(kind, N, K, i))
      const x = toBf16(seededValues(T * K, 2))
      gemv(x, weights, T).forEach((y, i) => {
        expectClose(fromBf16(y), reference(x, weights[i]!, T), 2 * atol(K), 2 ** -8 + 1e-6)
      })
    }
  })

  it('normalises x to the bits of rmsNorm', () => {
    for (const [T, K] of [
      [1, 512],
      [1, 1024],
      [1, 2560],
      [3, 2560],
      [8, 4096],
      [2, 9728],
      [1, 272],
    ] as const) {
      const x = toBf16(seededValues(T * K, 7, 3))
      const norm = seededValues(K, 8)
      const weight = seededWeight('nvfp4', 100, K, 9)
      for (const layout of T === 1 && K % 512 === 0 ? LAYOUTS : [{}]) {
        const [fused] = gemv(x, [weight], T, { ...layout, norm })
        const [plain] = gemv(normalised(x, norm, T), [weight], T, layout)
        expectSameBytes(fused!, plain!)
      }
    }
  })

  it('makes SwiGLU of gate and up, to the bits of the three steps', () => {
    for (const [T, F, K] of [
      [1, 2432, 2560],
      [1, 3, 512],
      [1, 1001, 1024],
      [4, 77, 2560],
      [8, 264, 512],
      [3, 50, 272],
    ] as const) {
      const x = toBf16(seededValues(T * K, 10))
      const weights = [seededWeight('nvfp4', F, K, 11), seededWeight('nvfp4', F, K, 12)]
      for (const layout of T === 1 && K % 512 === 0 ? LAYOUTS : [{}]) {
        const [gate, up] = gemv(x, weights, T, layout)
        const expected = poisoned(T * F)
        ops.swigluCuda!(expected, gate, up, T * F)
        const act = poisoned(T * F)
        ops.gemvCuda!([act], x, weights, T, { ...layout, swiglu: true })
        expectSameBytes(act, expected)
      }
    }
  })

  it('adds to y, rounding once', () => {
    for (const [T, N, K] of [
      [1, 1000, 4096],
      [1, 300, 9728],
      [3, 35, 512],
      [1, 17, 48],
    ] as const) {
      const weight = seededWeight('nvfp4', N, K, 13)
      const x = toBf16(seededValues(T * K, 14))
      const before = toBf16(seededValues(T * N, 15))
      const expected = plus(reference(x, weight, T), before)
      const y = before.slice()
      ops.gemvCuda!([y], x, [weight], T, { accumulate: true })
      expectClose(fromBf16(y), expected, atol(K), 2 ** -8 + 1e-6)
    }
  })

  it('gives a token the same bytes among two to eight', () => {
    const [N, K] = [523, 1536]
    const weights = [seededWeight('nvfp4+residual', N, K, 16)]
    const x = toBf16(seededValues(8 * K, 17))
    const [batch] = gemv(x, weights, 8)
    for (const T of [2, 3, 5, 7]) expectSameBytes(gemv(x.slice(0, T * K), weights, T)[0]!, batch!.subarray(0, T * N))
  })

  it('may overlap the kernel before it: a chain in a graph gives the same bytes', () => {
    const K = 2560
    const weight = seededWeight('nvfp4', K, K, 18)
    const norm = seededValues(K, 19)
    for (const T of [1, 4]) {
      const start = toBf16(seededValues(T * K, 20))
      const run = (options: object) => {
        const x = start.slice()
        ops.gemvChainCuda!(x, weight, T, 100, { norm, ...options })
        return x
      }
      const expected = run({})
      expect(fromBf16(expected).every(Number.isFinite)).toBe(true)
      for (let i = 0; i < 12; i++) expectSameBytes(run({ overlap: true }), expected)
      expectSameBytes(run({}), expected)
    }
  })

  it('the gradient of x is dy · w over all weights of a stack, rounded once', () => {
    for (const kind of ['nvfp4', 'nvfp4+residual'] as const) {
      for (const [T, K, rows] of [
        [1, 256, [8]],
        [8, 2560, [512, 128, 128]],
        [5, 4096, [264]],
        [8, 512, [4000, 4000]],
        [3, 9728, [520]],
        [8, 272, [33, 16, 1]],
        [2, 16, [7]],
        [4, 768, [31, 40]],
        [1, 2560, [1000]],
      ] as const) {
        const weights = rows.map((N, i) => seededWeight(kind, N, K, N + i))
        const all = rows.reduce((sum, N) => sum + N, 0)
        const dy = toBf16(seededValues(T * all, T + 21))
        const expected = new Float32Array(T * K)
        let from = 0
        for (const weight of weights) {
          const part = new Float32Array(T * weight.rows)
          for (let t = 0; t < T; t++) {
            part.set(fromBf16(dy.slice(t * all + from, t * all + from + weight.rows)), t * weight.rows)
          }
          ops.linearBackwardInput!(expected, part, weight, T, true, { threads: 16 })
          from += weight.rows
        }
        const dx = poisoned(T * K)
        ops.gemvBackwardInputCuda!(dx, dy, weights, T, false)
        expectClose(fromBf16(dx), expected, 2 * atol(2 * all), 2 ** -8 + 1e-5)
        const again = poisoned(T * K)
        ops.gemvBackwardInputCuda!(again, dy, weights, T, false)
        expectSameBytes(again, dx)
        ops.gemvBackwardInputCuda!(again, dy, weights, T, true)
        expectClose(fromBf16(again), plus(expected, dx), 2 * atol(2 * all), 2 ** -8 + 1e-5)
      }
    }
  })

  it('decodes every code under every scale exactly in the gradient of x', () => {
    const scales = Uint8Array.from({ length: 127 * 2 }, (_, i) => i >> 1) // 0x00 to 0x7e; 0x7f is NaN
    const codes = Uint8Array.from({ length: 127 * 16 }, (_, i) => (2 * (i % 8)) | ((2 * (i % 8) + 1) << 4))
    const weight: Weight = { storage: 'nvfp4', rows: 127, cols: 32, codes, scales, globalScale: 0.25 }
    const dense = new Float32Array(127 * 32)
    ops.dequantizeRows!(dense, weight, 0, 127, { isa: 'portable' })
    for (let from = 0; from < 127; from += 8) {
      const T = Math.min(8, 127 - from)
      const dy = new Uint16Array(T * 127)
      for (let t = 0; t < T; t++) dy[t * 127 + from + t] = 0x3f80
      const dx = poisoned(T * 32)
      ops.gemvBackwardInputCuda!(dx, dy, [weight], T, false)
      const expected = dense.slice(from * 32, (from + T) * 32)
      expect(fromBf16(dx).map((value) => value + 0)).toEqual(expected.map((value) => value + 0))
    }
  })

  it('makes the gradient of a weight exactly, and its squares', () => {
    for (const [T, R, K] of [
      [8, 2560, 512],
      [8, 33, 2560],
      [5, 40, 4096],
      [1, 7, 9728],
      [3, 1, 4],
      [8, 129, 16],
      [8, 70, 20],
    ] as const) {
      const dy = toBf16(seededValues(T * R, T + R))
      const x = toBf16(seededValues(T * K, T + K))
      const [ys, xs] = [fromBf16(dy), fromBf16(x)]
      const sums = new Float32Array(R * K)
      for (let r = 0; r < R; r++) {
        for (let k = 0; k < K; k++) {
          // Exact in f64, so this rounds as a fused multiply-add does.
          for (let t = 0; t < T; t++) sums[r * K + k] = sums[r * K + k]! + ys[t * R + r]! * xs[t * K + k]!
        }
      }
      const dw = poisoned(R * K)
      const squares = new Float64Array(R)
      expect(ops.gemvBackwardWeightCuda!(dw, squares, dy, x, T)).toBe(0)
      expectSameBytes(dw, toBf16(sums))
      const exact = ops.rowSquares!(fromBf16(dw), K, {}) as Float64Array
      for (let r = 0; r < R; r++) expect(Math.abs(squares[r]! / exact[r]! - 1)).toBeLessThan(1e-6)
      const again = { dw: poisoned(R * K), squares: new Float64Array(R) }
      ops.gemvBackwardWeightCuda!(again.dw, again.squares, dy, x, T)
      expectSameBytes(again, { dw, squares })
    }
  })

  it.each([
    [1e-38, 1, true],
    [1e25, 1, true],
    [1e25, 1e25, false],
    [NaN, 1, false],
    [0, 1, true],
  ])('says whether a gradient of %d · %d is finite, and squares it in f64', (a, b, finite) => {
    const dy = toBf16(new Float32Array(6).map((_, i) => (i === 4 ? a : 0)))
    const x = toBf16(new Float32Array(64).map((_, i) => (i === 9 ? b : 1)))
    const squares = new Float64Array(6)
    expect(ops.gemvBackwardWeightCuda!(poisoned(6 * 64), squares, dy, x, 1)).toBe(finite ? 0 : 7)
    expect(Number.isFinite(squares[4]!)).toBe(finite)
    const wide = fromBf16(dy)[4]! * fromBf16(x)[0]!
    if (finite && b === 1) expect(Math.abs(squares[4]! - 64 * wide * wide)).toBeLessThanOrEqual(1e-6 * squares[4]!)
    expect(squares[3]).toBe(0)
  })

  it('refuses what it cannot do', () => {
    const weight = seededWeight('nvfp4', 8, 512, 1)
    expect(() => gemv(new Uint16Array(9 * 512), [weight], 9)).toThrow('a GEMV of 9 tokens')
    expect(() => gemv(new Uint16Array(512), [weight], 1, { swiglu: true })).toThrow('two equal weights')
  })
})

if (probe.devices === 0) {
  it('says why there is no CUDA', () => {
    expect(() => gemv(new Uint16Array(512), [seededWeight('nvfp4', 8, 512, 1)], 1)).toThrow('CUDA cannot be used')
  })
}
