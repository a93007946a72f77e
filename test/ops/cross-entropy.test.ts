import { centralDifference, isaLevels, sameForAllThreads } from '../support/isa-levels'
import { expectClose, ops, seededValues, type OpOptions } from '../support/native-ops'

const IGNORED = -100

interface Problem {
  T: number
  V: number
  logits: Float32Array
  labels: Int32Array
}

function problem(T: number, V: number, seed = 1, scale = 15): Problem {
  const labels = Int32Array.from(seededValues(T, seed + 1), (v) => Math.floor(((v + 1) / 2) * V))
  for (let t = 2; t < T; t += 4) labels[t] = IGNORED
  return { T, V, logits: seededValues(T * V, seed, scale), labels }
}

/** Columns [begin, begin + count) of every row. */
function columns({ T, V, logits }: Problem, begin: number, count: number) {
  const out = new Float32Array(T * count)
  for (let t = 0; t < T; t++) out.set(logits.subarray(t * V + begin, t * V + begin + count), t * count)
  return out
}

function loss(p: Problem, chunk: number, options: OpOptions = {}) {
  const max = new Float32Array(p.T).fill(-Infinity)
  const sum = new Float32Array(p.T)
  const target = new Float32Array(p.T).fill(NaN)
  for (let begin = 0; begin < p.V; begin += chunk) {
    const count = Math.min(chunk, p.V - begin)
    ops.crossEntropyAccumulate!(max, sum, target, columns(p, begin, count), p.labels, p.T, count, begin, options)
  }
  ops.crossEntropyFinish!(max, max, sum, p.T) // lse may alias max
  return { lse: max, target, losses: target.map((logit, t) => (p.labels[t] === IGNORED ? 0 : max[t]! - logit)) }
}

function gradient(p: Problem, chunk: number, lse: Float32Array, weight: Float32Array, options: OpOptions = {}) {
  const out = new Float32Array(p.T * p.V)
  for (let begin = 0; begin < p.V; begin += chunk) {
    const count = Math.min(chunk, p.V - begin)
    const part = columns(p, begin, count)
    ops.crossEntropyGradient!(part, lse, p.labels, weight, p.T, count, begin, options)
    for (let t = 0; t < p.T; t++) out.set(part.subarray(t * count, (t + 1) * count), t * p.V + begin)
  }
  return out
}

function referenceLse(logits: ArrayLike<number>, t: number, V: number) {
  let max = -Infinity
  for (let v = 0; v < V; v++) max = Math.max(max, logits[t * V + v]!)
  let sum = 0
  for (let v = 0; v < V; v++) sum += Math.exp(logits[t * V + v]! - max)
  return max + Math.log(sum)
}

/** 1, odd, around the vectors of 8 and 16; chunks that divide the vocabulary and that do not. */
const SHAPES: [T: number, V: number, chunk: number][] = [
  [1, 1, 1],
  [3, 7, 2],
  [4, 16, 16],
  [5, 17, 16],
  [9, 100, 33],
  [6, 1000, 256],
  [2, 5003, 5003],
]

describe.each(isaLevels)('cross entropy on %s', (isa) => {
  test.each(SHAPES)('has the loss of double arithmetic for T = %i, V = %i in chunks of %i', (T, V, chunk) => {
    const p = problem(T, V)
    const { lse, losses } = loss(p, chunk, { isa })
    const expected = Float64Array.from({ length: T }, (_, t) => referenceLse(p.logits, t, V))
    // Two f32 roundings of numbers about 15 large, and one of the running sum.
    expectClose(lse, expected, 3e-6)
    expectClose(
      losses,
      expected.map((l, t) => (p.labels[t] === IGNORED ? 0 : l - p.logits[t * V + p.labels[t]!]!)),
      5e-6,
    )
  })

  test.each(SHAPES)('has the gradient of double arithmetic for T = %i, V = %i in chunks of %i', (T, V, chunk) => {
    const p = problem(T, V)
    const weight = seededValues(T, 9).map((v) => v + 2)
    const { lse } = loss(p, chunk, { isa })
    const expected = new Float64Array(T * V)
    for (let t = 0; t < T; t++) {
      if (p.labels[t] === IGNORED) continue
      const l = referenceLse(p.logits, t, V)
      for (let v = 0; v < V; v++) {
        const softmax = Math.exp(p.logits[t * V + v]! - l)
        expected[t * V + v] = (softmax - (v === p.labels[t] ? 1 : 0)) * weight[t]!
      }
    }
    const actual = gradient(p, chunk, lse, weight, { isa })
    // lse is rounded to f32: 2^-21 at 15, which is a relative error of every probability, and so an absolute one of
    // p − 1 where the label is nearly certain.
    expectClose(actual, expected, 3e-6, 5e-6)
    for (let t = 0; t < T; t++) actual[t * V + Math.max(0, p.labels[t]!)] = expected[t * V + Math.max(0, p.labels[t]!)]!
    expectClose(actual, expected, 1e-8, 5e-6)
  })

  test('counts a chunk of −inf as nothing, even the first one', () => {
    const p = problem(1, 12)
    p.labels[0] = 11
    p.logits.fill(-Infinity, 0, 8)
    const { lse, losses } = loss(p, 4, { isa })
    expect(lse[0]).toBeCloseTo(referenceLse(p.logits, 0, 12), 5)
    expect(losses[0]).toBeCloseTo(referenceLse(p.logits, 0, 12) - p.logits[11]!, 5)
    const slope = gradient(p, 4, lse, Float32Array.of(1), { isa })
    expect([...slope.subarray(0, 8)]).toEqual(Array(8).fill(0))
  })

  test.each([NaN, Infinity])('lets a logit of %d spoil its own row and no other', (bad) => {
    const p = problem(2, 40)
    p.logits[5] = bad
    const { lse } = loss(p, 16, { isa })
    expect(lse[0]).toBeNaN()
    expect(lse[1]).toBeCloseTo(referenceLse(p.logits, 1, 40), 5)
  })

  test('keeps tiny probabilities and a certain label apart', () => {
    const p: Problem = { T: 2, V: 3, logits: Float32Array.of(0, -20, -200, 30, 0, 0), labels: Int32Array.of(0, 0) }
    const { lse } = loss(p, 3, { isa })
    const slope = gradient(p, 3, lse, Float32Array.of(1, 1), { isa })
    expectClose(slope.subarray(1, 3), [Math.exp(-20), 0], 1e-40, 1e-5)
    expect(slope[3]).toBeLessThanOrEqual(0)
  })

  test('gives equal bytes for any number of threads', () => {
    const p = problem(13, 700)
    const weight = seededValues(13, 9)
    const lse = sameForAllThreads((threads) => loss(p, 300, { isa, threads }).lse)
    sameForAllThreads((threads) => gradient(p, 300, lse, weight, { isa, threads }))
  })
})

test('the gradient of every row sums to zero, and is zero where the label is ignored', () => {
  const p = problem(7, 500)
  const slope = gradient(p, 200, loss(p, 200).lse, new Float32Array(7).fill(1))
  for (let t = 0; t < 7; t++) {
    const row = slope.subarray(t * 500, (t + 1) * 500)
    expect(Math.abs(row.reduce((sum, v) => sum + v, 0))).toBeLessThan(1e-5)
    expect(row.some((v) => v !== 0)).toBe(p.labels[t] !== IGNORED)
  }
})

test('the gradient is the slope of the loss', () => {
  const p = problem(3, 30, 4, 3)
  const weight = Float32Array.of(0.5, 1.5, 2)
  const slope = gradient(p, 7, loss(p, 7).lse, weight)
  const total = () =>
    Array.from(p.labels).reduce((sum, label, t) => {
      if (label === IGNORED) return sum
      return sum + weight[t]! * (referenceLse(p.logits, t, 30) - p.logits[t * 30 + label]!)
    }, 0)
  expectClose(
    slope,
    Float64Array.from(p.logits, (_, i) => centralDifference(p.logits, i, 1e-3, total)),
    1e-5,
  )
})
