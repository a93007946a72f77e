import { centralDifference, isaLevels, sameForAllThreads } from '../support/isa-levels'
import { expectClose, ops, seededValues, type OpOptions } from '../support/native-ops'

/** 1, odd, around the vectors of 8 and 16, around the piece of 8192. */
const COUNTS = [1, 3, 7, 8, 9, 15, 16, 17, 33, 8191, 8193, 20000]
const silu = (z: number) => z / (1 + Math.exp(-z))

function forward(gate: Float32Array, up: Float32Array, options: OpOptions = {}) {
  const y = new Float32Array(gate.length).fill(NaN)
  ops.swiglu!(y, gate, up, gate.length, options)
  return y
}

function backward(dy: Float32Array, gate: Float32Array, up: Float32Array, options: OpOptions = {}) {
  const dgate = new Float32Array(gate.length).fill(NaN)
  const dup = dgate.slice()
  ops.swigluBackward!(dgate, dup, dy, gate, up, gate.length, options)
  return { dgate, dup }
}

describe.each(isaLevels)('swiglu on %s', (isa) => {
  test.each(COUNTS)('matches double arithmetic for %i elements', (count) => {
    const [gate, up] = [seededValues(count, 1, 12), seededValues(count, 2, 2)]
    // One ulp of e^z and four f32 operations.
    const y = forward(gate, up, { isa })
    expectClose(
      y,
      Float64Array.from(gate, (z, i) => silu(z) * up[i]!),
      0,
      4e-7,
    )
  })

  test('is the limit where e^-z overflows or vanishes, and passes NaN on', () => {
    const gate = Float32Array.from([-1e4, -200, -88.8, 0, 200, 1e30, NaN, 1])
    const up = new Float32Array(8).fill(2)
    const y = forward(gate, up, { isa })
    expectClose(y.subarray(0, 6), [0, 0, silu(-88.8) * 2, 0, 400, 2e30], 1e-36, 1e-6)
    expect(y[6]).toBeNaN()
    expect(y[7]).toBeCloseTo(2 * silu(1), 6)
  })

  test('writes over its inputs', () => {
    const [gate, up] = [seededValues(37, 3, 4), seededValues(37, 4)]
    const expected = forward(gate, up, { isa })
    const [g, u] = [gate.slice(), up.slice()]
    ops.swiglu!(g, g, up, 37, { isa })
    ops.swiglu!(u, gate, u, 37, { isa })
    expect(g).toEqual(expected)
    expect(u).toEqual(expected)
  })

  test('writes nothing behind the end', () => {
    const y = new Float32Array(32).fill(7)
    ops.swiglu!(y, seededValues(32, 1), seededValues(32, 2), 19, { isa })
    expect([...y.subarray(19)]).toEqual(Array(13).fill(7))
  })

  test('has a backward pass that matches double arithmetic and may write over gate and up', () => {
    const count = 8200
    const [gate, up, dy] = [seededValues(count, 5, 12), seededValues(count, 6), seededValues(count, 7)]
    const { dgate, dup } = backward(dy, gate, up, { isa })
    const slope = (z: number) => {
      const s = 1 / (1 + Math.exp(-z))
      return s * (1 + z * (1 - s))
    }
    // Near z = −1.28 the slope cancels to zero, hence the absolute part.
    expectClose(
      dgate,
      Float64Array.from(gate, (z, i) => dy[i]! * up[i]! * slope(z)),
      3e-7,
      1e-6,
    )
    expectClose(
      dup,
      Float64Array.from(gate, (z, i) => dy[i]! * silu(z)),
      0,
      4e-7,
    )
    const [g, u] = [gate.slice(), up.slice()]
    ops.swigluBackward!(g, u, dy, g, u, count, { isa })
    expect(g).toEqual(dgate)
    expect(u).toEqual(dup)
  })

  test('gives equal bytes for any number of threads', () => {
    const [gate, up, dy] = [seededValues(30000, 5, 6), seededValues(30000, 6), seededValues(30000, 7)]
    sameForAllThreads((threads) => forward(gate, up, { isa, threads }))
    sameForAllThreads((threads) => backward(dy, gate, up, { isa, threads }).dgate)
    sameForAllThreads((threads) => backward(dy, gate, up, { isa, threads }).dup)
  })
})

test('swigluBackward has the slope of the forward pass', () => {
  const [gate, up, dy] = [seededValues(40, 8, 5), seededValues(40, 9), seededValues(40, 10)]
  const loss = () => gate.reduce((sum, z, i) => sum + dy[i]! * silu(z) * up[i]!, 0)
  const slopes = (array: Float32Array) => Float64Array.from(array, (_, i) => centralDifference(array, i, 1e-3, loss))
  const { dgate, dup } = backward(dy, gate, up)
  expectClose(dgate, slopes(gate), 1e-5)
  expectClose(dup, slopes(up), 1e-5)
})
