import { centralDifference, isaLevels, sameForAllThreads } from '../support/isa-levels'
import { expectClose, ops, seededValues, type OpOptions } from '../support/native-ops'

const EPS = 1e-6
/** H of 1, odd, around the eight summing lanes and of Qwen3-4B; T on both sides of a piece of rows. */
const SHAPES: [T: number, H: number][] = [
  [1, 1],
  [3, 7],
  [2, 8],
  [5, 9],
  [300, 128],
  [7, 2560],
  [40, 1000],
]

function norm(x: Float32Array, w: Float32Array, T: number, H: number, options: OpOptions = {}) {
  const y = new Float32Array(T * H).fill(NaN)
  const invRms = new Float32Array(T).fill(NaN)
  ops.rmsNorm!(y, invRms, x, w, T, H, EPS, options)
  return { y, invRms }
}

function reference(x: Float32Array, w: Float32Array, T: number, H: number) {
  const y = new Float64Array(T * H)
  const invRms = new Float64Array(T)
  for (let t = 0; t < T; t++) {
    const row = x.subarray(t * H, (t + 1) * H)
    invRms[t] = 1 / Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) / H + EPS)
    for (let h = 0; h < H; h++) y[t * H + h] = row[h]! * invRms[t]! * w[h]!
  }
  return { y, invRms }
}

function referenceBackward(dy: Float32Array, x: Float32Array, w: Float32Array, T: number, H: number) {
  const { invRms } = reference(x, w, T, H)
  const dx = new Float64Array(T * H)
  const dw = new Float64Array(H)
  for (let t = 0; t < T; t++) {
    let mean = 0
    for (let h = 0; h < H; h++) mean += (w[h]! * dy[t * H + h]! * x[t * H + h]! * invRms[t]!) / H
    for (let h = 0; h < H; h++) {
      const n = x[t * H + h]! * invRms[t]!
      dx[t * H + h] = invRms[t]! * (w[h]! * dy[t * H + h]! - n * mean)
      dw[h] = dw[h]! + dy[t * H + h]! * n
    }
  }
  return { dx, dw }
}

function backward(T: number, H: number, options: OpOptions = {}, start = 0) {
  const [x, w, dy] = [seededValues(T * H, 1, 3), seededValues(H, 2), seededValues(T * H, 3)]
  const { invRms } = norm(x, w, T, H)
  const dx = new Float32Array(T * H).fill(start)
  const dw = new Float32Array(H).fill(start)
  ops.rmsNormBackward!(dx, dw, dy, x, w, invRms, T, H, options)
  return { x, w, dy, dx, dw }
}

describe('rmsNorm', () => {
  test.each(SHAPES)('matches double arithmetic to one rounding for T = %i, H = %i', (T, H) => {
    const [x, w] = [seededValues(T * H, 1, 3), seededValues(H, 2)]
    const expected = reference(x, w, T, H)
    for (const isa of isaLevels) {
      const actual = norm(x, w, T, H, { isa })
      expectClose(actual.y, expected.y, 0, 2 ** -23)
      expectClose(actual.invRms, expected.invRms, 0, 2 ** -23)
    }
  })

  test('writes in place and needs no inverse', () => {
    const [x, w] = [seededValues(3 * 40, 1), seededValues(40, 2)]
    const expected = norm(x, w, 3, 40).y
    ops.rmsNorm!(x, null, x, w, 3, 40, EPS)
    expect(x).toEqual(expected)
  })

  test('scales a row of zeros to zeros and survives values whose squares overflow f32', () => {
    const x = Float32Array.from([0, 0, 0, 0, 3e30, -3e30, 3e30, -3e30])
    const { y } = norm(x, new Float32Array(4).fill(1), 2, 4)
    expect([...y]).toEqual([0, 0, 0, 0, 1, -1, 1, -1])
  })

  test('lets a NaN reach its own row and no other', () => {
    const x = seededValues(2 * 16, 4)
    x[3] = NaN
    const { y } = norm(x, new Float32Array(16).fill(1), 2, 16)
    expect(y.subarray(0, 16).every(Number.isNaN)).toBe(true)
    expect(y.subarray(16).every(Number.isFinite)).toBe(true)
  })

  test('gives equal bytes for any number of threads', () => {
    const [x, w] = [seededValues(300 * 128, 1), seededValues(128, 2)]
    sameForAllThreads((threads) => norm(x, w, 300, 128, { threads }).y)
  })

  test('does nothing for no rows', () => {
    expect(norm(new Float32Array(0), seededValues(4, 1), 0, 4).y).toHaveLength(0)
  })
})

describe('rmsNormBackward', () => {
  test.each(SHAPES)('matches double arithmetic for T = %i, H = %i', (T, H) => {
    const { x, w, dy, dx, dw } = backward(T, H)
    const expected = referenceBackward(dy, x, w, T, H)
    // The kept inverse is rounded to f32: 2^-24 of each of two terms that may cancel.
    expectClose(dx, expected.dx, 1e-5, 1e-6)
    expectClose(dw, expected.dw, 1e-5, 1e-6)
  })

  test('adds to what the gradients hold', () => {
    const [fresh, added] = [backward(5, 33), backward(5, 33, {}, 2)]
    expectClose(
      added.dx,
      fresh.dx.map((v) => v + 2),
      1e-6,
    )
    expectClose(
      added.dw,
      fresh.dw.map((v) => v + 2),
      1e-6,
    )
  })

  test('has the slope of the forward pass', () => {
    const [T, H] = [3, 20]
    const { x, w, dy, dx, dw } = backward(T, H)
    const loss = () => reference(x, w, T, H).y.reduce((sum, v, i) => sum + v * dy[i]!, 0)
    const slopes = (array: Float32Array) => Float64Array.from(array, (_, i) => centralDifference(array, i, 1e-3, loss))
    expectClose(dx, slopes(x), 1e-4)
    expectClose(dw, slopes(w), 1e-4)
  })

  test('gives equal bytes for any number of threads', () => {
    sameForAllThreads((threads) => backward(300, 200, { threads }).dx)
    sameForAllThreads((threads) => backward(300, 200, { threads }).dw)
  })

  test('needs no weight gradient', () => {
    const { x, w, dy, dx } = backward(4, 32)
    const again = new Float32Array(4 * 32)
    ops.rmsNormBackward!(again, null, dy, x, w, norm(x, w, 4, 32).invRms, 4, 32)
    expect(again).toEqual(dx)
  })
})
