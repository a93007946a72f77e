import { CODEBOOKS, codebookNames, decodeBnb4, seededBnb4, type CodebookName } from '../support/bnb4'
import { isaLevels, sameForAllThreads } from '../support/isa-levels'
import { expectClose, expectSameBytes, ops, seededValues, type OpOptions } from '../support/native-ops'
import type { Weight } from '../support/weights'

/** 1, odd, around the block of 64, the register tiles, the depth block (256) and the pieces of a row. */
const SHAPES: [T: number, N: number, K: number][] = [
  [1, 1, 64],
  [1, 7, 128],
  [2, 33, 192],
  [3, 31, 320],
  [4, 64, 256],
  [5, 17, 576],
  [7, 5, 2560],
  [8, 96, 512],
  [9, 40, 320],
  [13, 64, 256],
  [29, 130, 64],
  [130, 31, 1216],
]

const { sqrt } = Math

/** Sums of K products of about `size` in f32, in another order than the reference's. */
const tolerance = (K: number, size = 0.2) => 8 * 2 ** -24 * K * size + 1e-7

function linear(x: Float32Array, weight: Weight, T: number, options: OpOptions = {}): Float32Array {
  const y = new Float32Array(T * weight.rows).fill(NaN)
  ops.linear!(y, x, weight, T, false, options)
  return y
}

function dequantized(weight: Weight, options: OpOptions = {}): Float32Array {
  const out = new Float32Array(weight.rows * weight.cols).fill(NaN)
  ops.dequantizeRows!(out, weight, 0, weight.rows, options)
  return out
}

/** x · wᵀ in doubles over the values that the test decodes itself. */
function product(x: Float32Array, weight: Weight, T: number): Float32Array {
  const { rows: N, cols: K } = weight
  const w = decodeBnb4(weight)
  const y = new Float32Array(T * N)
  for (let t = 0; t < T; t++) {
    for (let n = 0; n < N; n++) {
      let sum = 0
      for (let k = 0; k < K; k++) sum += x[t * K + k]! * w[n * K + k]!
      y[t * N + n] = sum
    }
  }
  return y
}

describe('bitsandbytes codes', () => {
  it('mean what was worked out by hand', () => {
    // Columns 0 and 1 are the low and the high nibble of the first byte.
    const codes = new Uint8Array(32)
    codes.set([0x0f, 0x71, 0xe8])
    const block = (codebook: CodebookName, absmax: number) =>
      dequantized({ storage: 'bnb4', codebook, rows: 1, cols: 64, codes, absmax: Float32Array.of(absmax) }).slice(0, 6)
    expect([...block('nf4', 2)]).toEqual(
      [2, -2, -1.3923856019973755, 0, 0.15916059911251068, 1.4459136724472046].map(Math.fround),
    )
    expect([...block('fp4', 24)]).toEqual([-6, 0, 0.125, 6, 0, -4])
  })

  it.each(isaLevels)('decode to table · absmax exactly on %s, sixteen codes under many magnitudes', (isa) => {
    for (const codebook of codebookNames) {
      for (const cols of [64, 128, 192, 320]) {
        const weight = seededBnb4(codebook, 33, cols, cols)
        weight.absmax!.set([0, 1, 2 ** -140, 3e38, 1 / 3])
        expectSameBytes(dequantized(weight, { isa }), decodeBnb4(weight))
        const rows = new Float32Array(3 * cols)
        ops.dequantizeRows!(rows, weight, 5, 3, { isa })
        expectSameBytes(rows, decodeBnb4(weight).slice(5 * cols, 8 * cols))
      }
    }
  })

  it.each(codebookNames)('of %s are the nearest ones when they are quantised, ties to the lower code', (codebook) => {
    const table = CODEBOOKS[codebook]
    const x = seededValues(64 * 40, 3)
    x.fill(0, 64, 128)
    x.set(table, 128)
    x[128 + 20] = -1
    const codes = new Uint8Array(x.length / 2)
    const absmax = new Float32Array(x.length / 64)
    ops.quantizeBnb4!(codes, absmax, x, codebook)
    x.forEach((value, i) => {
      const scaled = absmax[i >> 6]! > 0 ? Math.fround(value / absmax[i >> 6]!) : 0
      let best = 0
      table.forEach((each, code) => {
        if (Math.abs(Math.fround(each - scaled)) < Math.abs(Math.fround(table[best]! - scaled))) best = code
      })
      expect((codes[i >> 1]! >> (4 * (i % 2))) & 15).toBe(best)
    })
    expect(absmax[1]).toBe(0)
    expect(absmax[2]).toBe(1)
    expectSameBytes(
      decodeBnb4({ storage: 'bnb4', codebook, rows: 1, cols: x.length, codes, absmax }).slice(128, 144),
      Float32Array.from(table),
    )
  })
})

describe('linear over bitsandbytes weights', () => {
  it.each(isaLevels)('is x · wᵀ on %s within f32 rounding, for every shape', (isa) => {
    for (const codebook of codebookNames) {
      for (const [T, N, K] of SHAPES) {
        const weight = seededBnb4(codebook, N, K, N + K)
        const x = seededValues(T * K, T + 11)
        expectClose(linear(x, weight, T, { isa }), product(x, weight, T), tolerance(K))
      }
    }
  })

  it('has a reference that sums the same values', () => {
    const weight = seededBnb4('nf4', 5, 192, 5)
    const x = seededValues(3 * 192, 6)
    const y = new Float32Array(15)
    ops.linearReference!(y, x, weight, 3, {})
    expectSameBytes(y, product(x, weight, 3))
  })

  it.each(isaLevels)('gives equal bytes for any number of threads on %s', (isa) => {
    for (const T of [1, 5, 40]) {
      const weight = seededBnb4('nf4', 515, 320, 8)
      const x = seededValues(T * 320, 12)
      sameForAllThreads((threads) => linear(x, weight, T, { isa, threads }))
    }
  })

  it.each(isaLevels)('adds to what the output holds on %s', (isa) => {
    for (const T of [1, 20]) {
      const weight = seededBnb4('fp4', 33, 256, 2)
      const x = seededValues(T * 256, 3)
      const before = seededValues(T * 33, 4)
      const y = before.slice()
      ops.linear!(y, x, weight, T, true, { isa })
      expectClose(
        y,
        product(x, weight, T).map((value, i) => value + before[i]!),
        tolerance(256) + 1e-6,
      )
    }
  })

  it.each(isaLevels)('has the input gradient dy · w on %s', (isa) => {
    for (const [T, N, K] of SHAPES) {
      const weight = seededBnb4('nf4', N, K, N + K)
      const w = decodeBnb4(weight)
      const dy = seededValues(T * N, 21)
      const expected = new Float32Array(T * K)
      for (let t = 0; t < T; t++) {
        for (let k = 0; k < K; k++) {
          let sum = 0
          for (let n = 0; n < N; n++) sum += dy[t * N + n]! * w[n * K + k]!
          expected[t * K + k] = sum
        }
      }
      const dx = sameForAllThreads((threads) => {
        const out = new Float32Array(T * K).fill(NaN)
        ops.linearBackwardInput!(out, dy, weight, T, false, { isa, threads })
        return out
      })
      expectClose(dx, expected, tolerance(N, 0.2 * sqrt(2)))
    }
  })

  it('reads embedding rows', () => {
    const weight = seededBnb4('fp4', 9, 128, 4)
    const x = new Float32Array(3 * 128)
    ops.embedding!(x, weight, Int32Array.of(8, 0, 3), 3)
    const w = decodeBnb4(weight)
    for (const [t, id] of [8, 0, 3].entries()) {
      expectSameBytes(x.slice(t * 128, (t + 1) * 128), w.slice(id * 128, (id + 1) * 128))
    }
  })

  it('refuses columns that are no multiple of 64', () => {
    const weight = seededBnb4('nf4', 2, 64, 1)
    expect(() => linear(new Float32Array(96), { ...weight, cols: 96 }, 1)).toThrow('Expected a multiple of 64 for cols')
  })
})
