import { ops, seededValues } from '../support/native-ops'
import type { Sampled, SampleOptions } from '../support/sample-ops'

const sample = (logits: Float32Array, options: SampleOptions = {}, position = 0, history: number[] = []): Sampled =>
  ops.sampleToken!(logits, logits.length, Int32Array.from(history), position, options)

/** Counts of every id over many positions. */
function draws(logits: Float32Array, options: SampleOptions, count = 20000): number[] {
  const counts = new Array<number>(logits.length).fill(0)
  for (let position = 0; position < count; position++) counts[sample(logits, options, position).id]!++
  return counts
}

const logitsOf = (probabilities: number[]) => Float32Array.from(probabilities, Math.log)
const kept = (counts: number[]) => counts.flatMap((count, id) => (count > 0 ? [id] : []))

/** Pearson's statistic; with k − 1 degrees of freedom its mean is k − 1 and its variance 2(k − 1). */
function expectDistribution(counts: number[], probabilities: number[]) {
  const total = counts.reduce((a, b) => a + b)
  let statistic = 0
  let cells = 0
  probabilities.forEach((p, id) => {
    if (p === 0) return expect(counts[id]).toBe(0)
    cells++
    statistic += (counts[id]! - p * total) ** 2 / (p * total)
  })
  // Six standard deviations above the mean: a wrong distribution is beyond it by orders of magnitude.
  expect(statistic).toBeLessThan(cells - 1 + 6 * Math.sqrt(2 * (cells - 1)))
}

describe('greedy', () => {
  test('takes the largest logit, and of equal ones the lowest id', () => {
    expect(sample(Float32Array.of(1, 5, 2, 5, 5)).id).toBe(1)
    expect(sample(Float32Array.of(-3, -3)).id).toBe(0)
    expect(sample(Float32Array.of(-1e38)).id).toBe(0)
  })

  test('draws nothing: seed and position change nothing', () => {
    const logits = seededValues(100, 1, 0.01)
    const ids = [0, 1, 2, 3].map((i) => sample(logits, { seed: i, temperature: 0, topK: 50, topP: 0.9 }, i).id)
    expect(new Set(ids).size).toBe(1)
  })
})

describe('the distribution', () => {
  const probabilities = [0.4, 0.25, 0.05, 0.2, 0.1]
  const logits = logitsOf(probabilities)

  test('is the softmax at temperature 1', () => {
    expectDistribution(draws(logits, { temperature: 1, seed: 3 }), probabilities)
  })

  test('is sharpened by a lower temperature', () => {
    const powers = probabilities.map((p) => p ** 2)
    const total = powers.reduce((a, b) => a + b)
    expectDistribution(
      draws(logits, { temperature: 0.5, seed: 4 }),
      powers.map((p) => p / total),
    )
  })

  test('is renormalised over the kept tokens', () => {
    expectDistribution(draws(logits, { temperature: 1, topK: 2, seed: 5 }), [0.4 / 0.65, 0.25 / 0.65, 0, 0, 0])
  })

  test('would be noticed if it were another one', () => {
    expect(() => expectDistribution(draws(logits, { temperature: 0.8 }), probabilities)).toThrow()
  })

  test('depends on the order of the vocabulary by id alone', () => {
    const large = seededValues(3000, 6, 4)
    const plain = draws(large, { temperature: 1 }, 300)
    expect(draws(large, { temperature: 1, topK: 3000, topP: 1, minP: 0 }, 300)).toEqual(plain)
  })
})

describe('top-k', () => {
  test('keeps k tokens, of equal ones the lower ids', () => {
    expect(kept(draws(Float32Array.of(1, 2, 2, 2, 0), { temperature: 10, topK: 2 }, 500))).toEqual([1, 2])
    expect(kept(draws(Float32Array.of(1, 2, 3), { temperature: 10, topK: 99 }, 500))).toEqual([0, 1, 2])
    expect(kept(draws(Float32Array.of(1, 2, 3), { temperature: 10, topK: 1 }, 100))).toEqual([2])
  })
})

describe('top-p', () => {
  const logits = logitsOf([0.1, 0.6, 0.3])

  test('keeps the first token even when it alone exceeds topP', () => {
    expect(kept(draws(logits, { temperature: 1, topP: 0.5 }, 300))).toEqual([1])
    expect(kept(draws(logits, { temperature: 1, topP: 1e-6 }, 300))).toEqual([1])
  })

  test('keeps the token that crosses topP, and none behind it', () => {
    expect(kept(draws(logits, { temperature: 1, topP: 0.61 }, 300))).toEqual([1, 2])
    expect(kept(draws(logits, { temperature: 1, topP: 0.91 }, 300))).toEqual([0, 1, 2])
  })

  test('keeps everything at 1', () => {
    const skewed = logitsOf([0.999, 0.0005, 0.0005])
    expect(kept(draws(skewed, { temperature: 1, topP: 1 }, 20000))).toEqual([0, 1, 2])
  })

  test('measures probability after temperature and top-k', () => {
    // Over {1, 2} token 1 has 2/3: beyond 0.65 alone, which it is not over all three.
    expect(kept(draws(logits, { temperature: 1, topK: 2, topP: 0.65 }, 300))).toEqual([1])
    expect(kept(draws(logits, { temperature: 1, topP: 0.65 }, 300))).toEqual([1, 2])
    expect(kept(draws(logits, { temperature: 0.5, topP: 0.65 }, 300))).toEqual([1])
  })

  test.each([0.05, 0.3, 0.9, 0.999])('keeps exactly what sorting the vocabulary keeps at %d', (topP) => {
    const logits = seededValues(600, 11)
    const ranked = Array.from(logits, (v, id) => ({ id, weight: Math.exp(v) })).sort((a, b) => b.weight - a.weight)
    const wanted = topP * ranked.reduce((sum, { weight }) => sum + weight, 0)
    let sum = 0
    const nucleus = ranked.filter(({ weight }) => {
      sum += weight
      return sum - weight < wanted
    })
    // Each kept token is expected 12 times or more.
    const counts = draws(logits, { temperature: 1, topP }, 20000)
    expect(kept(counts)).toEqual(nucleus.map(({ id }) => id).sort((a, b) => a - b))
  })

  test('keeps exactly the nucleus of a flat vocabulary, lower ids first', () => {
    const counts = draws(new Float32Array(1024), { temperature: 1, topP: 0.25 }, 4000)
    expect(kept(counts)).toEqual(Array.from({ length: 256 }, (_, id) => id))
  })
})

describe('min-p', () => {
  test('drops tokens below minP times the largest probability and keeps the one at it', () => {
    const logits = Float32Array.of(Math.log(8), Math.log(4.1), Math.log(3.9), Math.log(1))
    expect(kept(draws(logits, { temperature: 1, minP: 0.5 }, 400))).toEqual([0, 1])
    expect(kept(draws(Float32Array.of(2, 2, 1), { temperature: 1, minP: 0.999 }, 100))).toEqual([0, 1])
  })
})

describe('the repetition penalty', () => {
  test('divides positive logits and multiplies negative ones', () => {
    expect(sample(Float32Array.of(3, 2), { repetitionPenalty: 2 }, 0, [0]).id).toBe(1)
    expect(sample(Float32Array.of(-1, -1.5), { repetitionPenalty: 2 }, 0, [0]).id).toBe(1)
    expect(sample(Float32Array.of(-1, -1.5), { repetitionPenalty: 0.5 }, 0, [1]).id).toBe(1)
  })

  test('counts an id that occurs twice once', () => {
    expect(sample(Float32Array.of(3, 1), { repetitionPenalty: 2 }, 0, [0, 0]).id).toBe(0)
  })

  test('leaves log-probabilities those of the model', () => {
    const logits = Float32Array.of(3, 2)
    const expected = 2 - Math.log(Math.exp(3) + Math.exp(2))
    const token = sample(logits, { repetitionPenalty: 2, temperature: 0 }, 0, [0])
    expect(token.id).toBe(1)
    expect(token.logprob).toBeCloseTo(expected, 6)
  })

  test('refuses ids outside the vocabulary', () => {
    expect(() => sample(Float32Array.of(1, 2), { repetitionPenalty: 2 }, 0, [2])).toThrow(
      'Expected ids in [0, 2) for history but received 2',
    )
  })
})

describe('log-probabilities', () => {
  test('are log softmax of the raw logits, whatever the filters', () => {
    const logits = seededValues(1000, 7, 10)
    const max = Math.max(...logits)
    const lse = max + Math.log(logits.reduce((sum, v) => sum + Math.exp(v - max), 0))
    const token = sample(logits, { temperature: 0.3, topK: 5, topLogprobs: 4, seed: 1 }, 9)
    expect(token.logprob).toBeCloseTo(logits[token.id]! - lse, 5)
    const ranked = Array.from(logits, (v, id) => ({ id, v })).sort((a, b) => b.v - a.v || a.id - b.id)
    expect(token.top.map((t) => t.id)).toEqual(ranked.slice(0, 4).map((t) => t.id))
    token.top.forEach((t) => expect(t.logprob).toBeCloseTo(logits[t.id]! - lse, 5))
  })

  test('keep their digits beside logits at the end of the range', () => {
    expect(sample(Float32Array.of(-3e38, -3e38)).logprob).toBeCloseTo(-Math.log(2), 6)
  })

  test('are reported only when asked, and never more than there are', () => {
    expect(sample(Float32Array.of(1, 2)).top).toEqual([])
    expect(sample(Float32Array.of(1, 2, 2), { topLogprobs: 9 }).top.map((t) => t.id)).toEqual([1, 2, 0])
  })
})

describe('reproducibility', () => {
  const logits = seededValues(151936, 8, 6)
  const options = { temperature: 1, topP: 0.95, seed: 42 }
  const ids = (seed: number, positions: number[]) =>
    positions.map((position) => sample(logits, { ...options, seed }, position).id)

  test('the same seed and position draw the same token, in any order', () => {
    expect(ids(42, [5, 4, 3, 2, 1])).toEqual(ids(42, [1, 2, 3, 4, 5]).reverse())
  })

  test('another seed or position draws others', () => {
    expect(ids(43, [1, 2, 3, 4, 5])).not.toEqual(ids(42, [1, 2, 3, 4, 5]))
    expect(new Set(ids(42, [1, 2, 3, 4, 5])).size).toBeGreaterThan(1)
  })
})

test.each([
  [NaN, 'nan'],
  [Infinity, 'inf'],
  [-Infinity, '-inf'],
])('a logit of %d is an error that names the token', (bad, name) => {
  const logits = seededValues(50, 9)
  logits[17] = bad
  for (const temperature of [0, 1]) {
    expect(() => sample(logits, { temperature })).toThrow(
      expect.objectContaining({ code: 'NON_FINITE_LOGITS', message: `the logit of token 17 is ${name}` }),
    )
  }
})
