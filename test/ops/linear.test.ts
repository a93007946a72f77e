import { expectClose, ops, seededValues, type OpOptions } from '../support/native-ops'
import { seededWeight, type Weight, type WeightKind } from '../support/weights'

const KINDS: WeightKind[] = ['nvfp4', 'nvfp4+residual', 'f32', 'f16', 'bf16']
const packed = (kind: WeightKind) => kind.startsWith('nvfp4')

const levels = (['portable', 'neon', 'avx2', 'avx512'] as const).filter((isa) => {
  try {
    ops.linear!(new Float32Array(1), new Float32Array(1), seededWeight('f32', 1, 1, 1), 1, false, { isa })
    return true
  } catch (error) {
    console.log(`linear: ${isa} is skipped: ${(error as Error).message}`)
    return false
  }
})

/** 1, odd, around the 16-column block, the register tiles (4x16, 6x16, 14x32), the depth block (256) and pieces of rows. */
const SHAPES: [T: number, N: number, K: number][] = [
  [1, 1, 16],
  [1, 7, 48],
  [2, 33, 240],
  [3, 31, 272],
  [4, 64, 128],
  [5, 17, 144],
  [7, 5, 2560],
  [8, 96, 512],
  [9, 40, 320],
  [13, 33, 256],
  [15, 32, 496],
  [29, 130, 80],
  [1, 515, 256],
  [130, 31, 2560],
]
const DENSE_SHAPES: [T: number, N: number, K: number][] = [
  [1, 1, 1],
  [1, 3, 17],
  [2, 33, 255],
  [6, 15, 257],
  [9, 47, 31],
  [15, 65, 259],
]

function linear(x: Float32Array, weight: Weight, T: number, options: OpOptions = {}): Float32Array {
  const y = new Float32Array(T * weight.rows).fill(NaN)
  ops.linear!(y, x, weight, T, false, options)
  return y
}

function reference(x: Float32Array, weight: Weight, T: number): Float32Array {
  const y = new Float32Array(T * weight.rows)
  ops.linearReference!(y, x, weight, T, { isa: 'portable' })
  return y
}

/** The weight as f32, one native call; itself checked against the formula below. */
function dense(weight: Weight, options: OpOptions = { isa: 'portable' }): Float32Array {
  const out = new Float32Array(weight.rows * weight.cols).fill(NaN)
  ops.dequantizeRows!(out, weight, 0, weight.rows, options)
  return out
}

/**
 * Each addition errs by up to 2^-24 of a partial sum of about `size` · sqrt(k), and K such errors of random sign add up to
 * sqrt(K) of them: about 2^-24 · K · size, where `size` is the RMS of one product (up to 0.41 for these inputs). The worst
 * of some thousand elements was measured at 4.2 times that (K near 256; longer sums are cut in blocks and do better).
 */
const tolerance = (K: number) => 8 * 2 ** -24 * K * 0.41 + 1e-7

describe('dequantizeRows', () => {
  const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6]

  it.each(levels)('decodes every code under every scale exactly on %s', (isa) => {
    const scales = Uint8Array.from({ length: 127 }, (_, i) => i) // 0x00 to 0x7e; 0x7f is NaN
    const codes = new Uint8Array(127 * 8)
    const expected = new Float32Array(127 * 16)
    const value = (bits: number) =>
      bits >> 3 === 0 ? (bits & 7) * 2 ** -9 : (1 + (bits & 7) / 8) * 2 ** ((bits >> 3) - 7)
    scales.forEach((scale, row) => {
      for (let j = 0; j < 8; j++) codes[row * 8 + j] = (2 * j) | ((2 * j + 1) << 4)
      E2M1.forEach((code, j) => (expected[row * 16 + j] = Math.fround(code * value(scale)) * Math.fround(0.3)))
    })
    const weight: Weight = { storage: 'nvfp4', rows: 127, cols: 16, codes, scales, globalScale: 0.3 }
    expect(dense(weight, { isa })).toEqual(expected)
  })

  it.each(levels)('gives the bytes of the portable version on %s for any storage, row range and length', (isa) => {
    for (const kind of KINDS) {
      for (const cols of [16, 48, 240, ...(packed(kind) ? [] : [1, 7, 33])]) {
        const weight = seededWeight(kind, 5, cols, 3)
        const [actual, expected] = [isa, 'portable'].map((level) => {
          const out = new Float32Array(3 * cols)
          ops.dequantizeRows!(out, weight, 1, 3, { isa: level })
          return out
        })
        expect(actual).toEqual(expected)
        expect(expected).toEqual(dense(weight).subarray(cols, 4 * cols))
      }
    }
  })
})

describe('linear', () => {
  it.each(levels)('is x · wᵀ on %s within f32 rounding, for every storage and shape', (isa) => {
    for (const kind of KINDS) {
      for (const [T, N, K] of packed(kind) ? SHAPES : [...SHAPES, ...DENSE_SHAPES]) {
        const weight = seededWeight(kind, N, K, N + K)
        const x = seededValues(T * K, T + 11)
        expectClose(linear(x, weight, T, { isa }), reference(x, weight, T), tolerance(K))
      }
    }
  })

  it('the reference is the plain sum over the decoded weight', () => {
    for (const kind of KINDS) {
      const [T, N, K] = [3, 5, 48]
      const weight = seededWeight(kind, N, K, 5)
      const [w, x] = [dense(weight), seededValues(T * K, 6)]
      const expected = Float32Array.from({ length: T * N }, (_, at) => {
        let sum = 0
        for (let k = 0; k < K; k++) sum += x[Math.floor(at / N) * K + k]! * w[(at % N) * K + k]!
        return sum
      })
      expectClose(reference(x, weight, T), expected, 1e-7, 1e-6)
    }
  })

  it.each(levels)('gives a token the same answer alone and in a batch on %s', (isa) => {
    for (const kind of KINDS) {
      const [T, N, K] = [20, 37, 272]
      const weight = seededWeight(kind, N, K, 9)
      const x = seededValues(T * K, 10)
      const batch = linear(x, weight, T, { isa })
      for (let t = 0; t < T; t++) {
        expectClose(
          linear(x.subarray(t * K, (t + 1) * K), weight, 1, { isa }),
          batch.subarray(t * N, (t + 1) * N),
          tolerance(K),
        )
      }
    }
  })

  it.each(levels)('gives the same bytes for 1, 2 and 3 threads and twice on %s', (isa) => {
    for (const kind of KINDS) {
      for (const [T, N, K] of [
        [1, 700, 256],
        [3, 515, 272],
        [70, 130, 528],
      ] as const) {
        const weight = seededWeight(kind, N, K, 21)
        const x = seededValues(T * K, 22)
        const first = linear(x, weight, T, { isa, threads: 1 })
        for (const threads of [1, 2, 3]) expect(linear(x, weight, T, { isa, threads })).toEqual(first)
      }
    }
  })

  it.each(levels)('adds to the output when asked on %s', (isa) => {
    for (const kind of KINDS) {
      for (const T of [1, 12]) {
        const [N, K] = [35, 288]
        const weight = seededWeight(kind, N, K, 31)
        const x = seededValues(T * K, 32)
        const before = seededValues(T * N, 33)
        const y = before.slice()
        ops.linear!(y, x, weight, T, true, { isa })
        const product = reference(x, weight, T)
        expectClose(
          y,
          product.map((value, i) => value + before[i]!),
          tolerance(K) + 1e-6,
        )
      }
    }
  })

  it.each(levels)('writes nothing for no tokens or rows, and zeros for no columns, on %s', (isa) => {
    for (const kind of KINDS) {
      const guard = Float32Array.of(7)
      ops.linear!(guard, new Float32Array(0), seededWeight(kind, 3, 16, 1), 0, false, { isa })
      ops.linear!(guard, new Float32Array(16), seededWeight(kind, 0, 16, 1), 1, false, { isa })
      expect(guard[0]).toBe(7)
      expect(linear(new Float32Array(0), seededWeight(kind, 2, 0, 1), 2, { isa })).toEqual(new Float32Array(4))
      const kept = Float32Array.of(1, 2)
      ops.linear!(kept, new Float32Array(0), seededWeight(kind, 2, 0, 1), 1, true, { isa })
      expect(kept).toEqual(Float32Array.of(1, 2))
    }
  })

  it.each(levels)('lets a NaN of one token touch that token alone on %s', (isa) => {
    for (const kind of KINDS) {
      for (const T of [2, 15]) {
        const [N, K] = [19, 48]
        const x = seededValues(T * K, 41)
        x[K + 5] = NaN
        const y = linear(x, seededWeight(kind, N, K, 42), T, { isa })
        expect(y.every((value, i) => Number.isNaN(value) === (Math.floor(i / N) === 1))).toBe(true)
      }
    }
  })

  it('refuses a weight whose arrays do not fit its shape', () => {
    const weight = seededWeight('nvfp4', 4, 32, 1)
    const call = (changes: Partial<Weight>) => () => linear(new Float32Array(64), { ...weight, ...changes }, 1)
    expect(call({ rows: 5 })).toThrow('Expected 80 elements for codes but received 64')
    expect(call({ cols: 24 })).toThrow('Expected a multiple of 16 for cols')
    expect(call({ storage: 'q4' as 'f32' })).toThrow(
      'Expected nvfp4, bnb4, f32, f16 or bf16 for storage but received q4',
    )
    expect(call({ codes: new Float32Array(64) as unknown as Uint8Array })).toThrow('Expected a Uint8Array')
  })
})

describe('linear backward', () => {
  /** [rows, cols] transposed, as an f32 weight: turns the reference product into either gradient. */
  const transposed = (data: Float32Array, rows: number, cols: number): Weight => ({
    storage: 'f32',
    rows: cols,
    cols: rows,
    dense: Float32Array.from(data, (_, i) => data[(i % rows) * cols + Math.floor(i / rows)]!),
  })

  it.each(levels)('gives dx = dy · w on %s for every storage, with and without adding', (isa) => {
    for (const kind of KINDS) {
      for (const [T, N, K] of packed(kind) ? SHAPES : [...SHAPES, ...DENSE_SHAPES]) {
        const weight = seededWeight(kind, N, K, N + K)
        const dy = seededValues(T * N, T + 51)
        const expected = reference(dy, transposed(dense(weight), N, K), T)
        const dx = new Float32Array(T * K).fill(NaN)
        ops.linearBackwardInput!(dx, dy, weight, T, false, { isa, threads: 2 })
        expectClose(dx, expected, tolerance(N))
        ops.linearBackwardInput!(dx, dy, weight, T, true, { isa })
        expectClose(
          dx,
          expected.map((value) => 2 * value),
          2 * tolerance(N),
        )
      }
    }
  })

  it.each(levels)('gives dw = dyᵀ · x for any rows of the weight on %s, with and without adding', (isa) => {
    for (const [T, N, K] of [...SHAPES, ...DENSE_SHAPES]) {
      const dy = seededValues(T * N, T + 61)
      const x = seededValues(T * K, T + 62)
      const all = reference(transposed(dy, T, N).dense as Float32Array, transposed(x, T, K), N)
      for (const [begin, count] of [
        [0, N],
        [Math.floor(N / 3), Math.ceil(N / 2)],
      ] as const) {
        const expected = all.subarray(begin * K, (begin + count) * K)
        const dw = new Float32Array(count * K).fill(NaN)
        ops.linearBackwardWeight!(dw, dy, x, T, N, K, begin, count, false, { isa, threads: 2 })
        expectClose(dw, expected, tolerance(T))
        ops.linearBackwardWeight!(dw, dy, x, T, N, K, begin, count, true, { isa })
        expectClose(
          dw,
          expected.map((value) => 2 * value),
          2 * tolerance(T),
        )
      }
    }
  })

  it.each(levels)('gives the same bytes for any number of threads on %s', (isa) => {
    const [T, N, K] = [40, 130, 528]
    const weight = seededWeight('nvfp4', N, K, 71)
    const [dy, x] = [seededValues(T * N, 72), seededValues(T * K, 73)]
    const results = [1, 2, 3].map((threads) => {
      const [dx, dw] = [new Float32Array(T * K), new Float32Array(N * K)]
      ops.linearBackwardInput!(dx, dy, weight, T, false, { isa, threads })
      ops.linearBackwardWeight!(dw, dy, x, T, N, K, 0, N, false, { isa, threads })
      return [dx, dw]
    })
    expect(results[1]).toEqual(results[0])
    expect(results[2]).toEqual(results[0])
  })

  it.each(levels)('has the slope of the forward product on %s', (isa) => {
    // L = Σ dy ∘ (x · wᵀ) is linear in x and in w, so a central difference is exact up to rounding at any step size.
    const [T, N, K] = [3, 9, 32]
    const weight = seededWeight('f32', N, K, 81)
    const [x, dy] = [seededValues(T * K, 82), seededValues(T * N, 83)]
    const loss = (input: Float32Array, w: Float32Array) =>
      linear(input, { ...weight, dense: w }, T, { isa }).reduce((sum, value, i) => sum + value * dy[i]!, 0)
    const slope = (at: number, data: Float32Array, call: (moved: Float32Array) => number) => {
      const [up, down] = [1, -1].map((step) => data.map((value, i) => (i === at ? value + step : value)))
      return (call(up!) - call(down!)) / 2
    }
    const [dx, dw] = [new Float32Array(T * K), new Float32Array(N * K)]
    ops.linearBackwardInput!(dx, dy, weight, T, false, { isa })
    ops.linearBackwardWeight!(dw, dy, x, T, N, K, 0, N, false, { isa })
    const w = weight.dense as Float32Array
    for (const at of [0, 1, 31, 32, 95]) expect(slope(at, x, (moved) => loss(moved, w))).toBeCloseTo(dx[at]!, 4)
    for (const at of [0, 17, 100, 287]) expect(slope(at, w, (moved) => loss(x, moved))).toBeCloseTo(dw[at]!, 4)
  })
})
