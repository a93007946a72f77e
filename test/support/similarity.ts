/** How far one vector of numbers is from another, as a whole: for results whose single elements no bound fits. */
export interface Similarity {
  /** ‖a − b‖ / ‖b‖ */
  relativeError: number
  cosine: number
  /** ‖a‖ / ‖b‖ */
  normRatio: number
}

export function similarityOf(actual: ArrayLike<number>, expected: ArrayLike<number>): Similarity {
  if (actual.length !== expected.length) {
    throw new Error(`Expected ${expected.length} values but received ${actual.length}`)
  }
  let [distance, dot, squares, expectedSquares] = [0, 0, 0, 0]
  for (let i = 0; i < expected.length; i++) {
    const [a, b] = [actual[i]!, expected[i]!]
    distance += (a - b) ** 2
    dot += a * b
    squares += a * a
    expectedSquares += b * b
  }
  return {
    relativeError: Math.sqrt(distance / expectedSquares),
    cosine: dot / Math.sqrt(squares * expectedSquares),
    normRatio: Math.sqrt(squares / expectedSquares),
  }
}

/** Bounds of a similarity; only those given count. */
export interface Bounds {
  /** At most. */
  relativeError?: number
  /** At least. */
  cosine?: number
  /** At most this far from 1, either way. */
  normRatio?: number
}

/** Fails with everything that was measured unless the bounds hold; NaN holds none. */
export function expectSimilar(
  what: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { relativeError = Infinity, cosine = -1, normRatio = Infinity }: Bounds,
): void {
  const found = similarityOf(actual, expected)
  const holds =
    found.relativeError <= relativeError && found.cosine >= cosine && Math.abs(found.normRatio - 1) <= normRatio
  if (holds) return
  const bounds = `relative error <= ${relativeError}, cosine >= ${cosine}, norm ratio within ${normRatio} of 1`
  throw new Error(`${what}: Expected ${bounds} but received ${JSON.stringify(found)}`)
}
