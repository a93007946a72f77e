/** Fails with the worst element unless |actual - expected| <= atol + rtol * |expected| everywhere. */
export function expectClose(actual: ArrayLike<number>, expected: ArrayLike<number>, atol: number, rtol = 0): void {
  if (actual.length !== expected.length)
    throw new Error(`Expected ${expected.length} values but received ${actual.length}`)
  let worst = -1
  let excess = 0
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs(actual[i]! - expected[i]!)
    const over = error - (atol + rtol * Math.abs(expected[i]!))
    if (!(over <= excess)) {
      worst = i
      excess = Number.isNaN(over) ? Infinity : over
    }
  }
  if (worst >= 0)
    throw new Error(
      `Element ${worst}: expected ${expected[worst]} but received ${actual[worst]} (atol ${atol}, rtol ${rtol})`,
    )
}
