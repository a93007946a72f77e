import { isaLevels, sameForAllThreads } from '../support/isa-levels'
import { expectClose, ops, seededValues, type OpOptions } from '../support/native-ops'

const f32 = Math.fround

function table(positions: number[], D: number, base: number, options: OpOptions = {}) {
  const cosines = new Float32Array((positions.length * D) / 2).fill(NaN)
  const sines = cosines.slice()
  ops.ropeTable!(cosines, sines, Int32Array.from(positions), positions.length, D, base, options)
  return { cosines, sines }
}

/** The f32 steps of Hugging Face's rotary embedding: exponent, power, reciprocal and angle are each rounded. */
function referenceTable(positions: number[], D: number, base: number) {
  const angles = positions.flatMap((position) =>
    Array.from({ length: D / 2 }, (_, i) => f32(position * f32(1 / f32(base ** f32((2 * i) / D))))),
  )
  return { cosines: Float32Array.from(angles, Math.cos), sines: Float32Array.from(angles, Math.sin) }
}

/** y[i] + i·y[i + D/2] = (x[i] + i·x[i + D/2]) · (cos + i·sin), in double. */
function reference(x: Float32Array, cosines: Float32Array, sines: Float32Array, T: number, heads: number, D: number) {
  const y = new Float64Array(x.length)
  const half = D / 2
  for (let row = 0; row < T * heads; row++) {
    const t = Math.floor(row / heads)
    for (let i = 0; i < half; i++) {
      const [re, im] = [x[row * D + i]!, x[row * D + half + i]!]
      const [c, s] = [cosines[t * half + i]!, sines[t * half + i]!]
      y[row * D + i] = re * c - im * s
      y[row * D + half + i] = re * s + im * c
    }
  }
  return y
}

describe('ropeTable', () => {
  const positions = [0, 1, 2, 17, 4095, 40959, 131072, 262142, 262143]

  test.each([
    [128, 1e6],
    [64, 1e4],
    [16, 5e6],
    [2, 1e6],
  ])('has the f32 angles of Hugging Face up to position 262143 for D = %i, base = %d', (D, base) => {
    const actual = table(positions, D, base)
    const expected = referenceTable(positions, D, base)
    // The math library of JavaScript may differ in the last bit of a double, so in half an ulp after rounding.
    expectClose(actual.cosines, expected.cosines, 2 ** -24)
    expectClose(actual.sines, expected.sines, 2 ** -24)
  })

  test('is the identity at position 0', () => {
    const { cosines, sines } = table([0], 32, 1e6)
    expect([...cosines]).toEqual(Array(16).fill(1))
    expect([...sines]).toEqual(Array(16).fill(0))
  })

  test('would differ with an angle that is not rounded to f32', () => {
    const angle = 262143 * f32(1 / f32(1e6 ** f32(2 / 128)))
    expect(Math.abs(Math.cos(f32(angle)) - Math.cos(angle))).toBeGreaterThan(1e-4)
  })

  test('gives equal bytes for any number of threads', () => {
    const many = Array.from({ length: 50 }, (_, t) => t * 37)
    sameForAllThreads((threads) => table(many, 32, 1e6, { threads }).sines)
  })
})

describe('rope', () => {
  const T = 11
  const positions = Array.from({ length: T }, (_, t) => 3 * t * t)

  test.each([
    [1, 2],
    [3, 6],
    [2, 16],
    [5, 30],
    [32, 128],
  ])('rotates the halves of %i heads of width %i', (heads, D) => {
    const { cosines, sines } = table(positions, D, 1e6)
    const x = seededValues(T * heads * D, 5)
    for (const isa of isaLevels) {
      const y = x.slice()
      ops.rope!(y, cosines, sines, T, heads, D, false, { isa })
      expectClose(y, reference(x, cosines, sines, T, heads, D), 2 ** -22)
    }
  })

  test('is undone by its inverse, which is also its transpose', () => {
    const [heads, D] = [4, 32]
    const { cosines, sines } = table(positions, D, 1e6)
    const [x, dy] = [seededValues(T * heads * D, 6), seededValues(T * heads * D, 7)]
    const y = x.slice()
    ops.rope!(y, cosines, sines, T, heads, D, false)
    const dx = dy.slice()
    ops.rope!(dx, cosines, sines, T, heads, D, true)
    const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, v, i) => sum + v * b[i]!, 0)
    expect(Math.abs(dot(y, dy) - dot(x, dx))).toBeLessThan(1e-4)
    expect(Math.abs(dot(y, dy) - dot(x, dy))).toBeGreaterThan(1e-2)
    ops.rope!(y, cosines, sines, T, heads, D, true)
    expectClose(y, x, 2 ** -21)
  })

  test('makes scores depend on the distance of two positions alone', () => {
    const D = 64
    const [q, k] = [seededValues(D, 8), seededValues(D, 9)]
    const score = (at: number, other: number) => {
      const [a, b] = [q.slice(), k.slice()]
      for (const [vector, position] of [
        [a, at],
        [b, other],
      ] as const) {
        const { cosines, sines } = table([position], D, 1e6)
        ops.rope!(vector, cosines, sines, 1, 1, D, false)
      }
      return a.reduce((sum, v, i) => sum + v * b[i]!, 0)
    }
    expect(Math.abs(score(7, 3) - score(107, 103))).toBeLessThan(1e-4)
    expect(Math.abs(score(7, 3) - score(7, 4))).toBeGreaterThan(1e-3)
  })

  test('gives equal bytes for any number of threads', () => {
    const { cosines, sines } = table(positions, 32, 1e6)
    sameForAllThreads((threads) => {
      const x = seededValues(T * 3 * 32, 5)
      ops.rope!(x, cosines, sines, T, 3, 32, false, { threads })
      return x
    })
  })
})
