const { abs } = Math

/** Fails with the worst element unless |actual - expected| <= atol + rtol * |expected| everywhere. */
export function expectClose(actual: ArrayLike<number>, expected: ArrayLike<number>, atol: number, rtol = 0): void {
  if (actual.length !== expected.length)
    throw new Error(`Expected ${expected.length} values but received ${actual.length}`)
  let worst = -1
  let excess = 0
  for (let i = 0; i < expected.length; i++) {
    const error = abs(actual[i]! - expected[i]!)
    const over = error - (atol + rtol * abs(expected[i]!))
    if (!(over <= excess)) {
      worst = i
      excess = over > excess ? over : Infinity // NaN
    }
  }
  if (worst >= 0)
    throw new Error(
      `Element ${worst}: expected ${expected[worst]} but received ${actual[worst]} (atol ${atol}, rtol ${rtol})`,
    )
}

type Arrays = ArrayBufferView | Record<string, ArrayBufferView>

const bytesOf = (view: ArrayBufferView) => Buffer.from(view.buffer, view.byteOffset, view.byteLength)

/** Fails unless two arrays, or two objects of arrays, hold the same bytes. toEqual takes seconds for a million numbers. */
export function expectSameBytes(actual: Arrays, expected: Arrays): void {
  if (ArrayBuffer.isView(actual) && ArrayBuffer.isView(expected)) {
    if (!bytesOf(actual).equals(bytesOf(expected))) throw new Error('Expected the same bytes')
    return
  }
  const [ours, theirs] = [actual, expected] as Record<string, ArrayBufferView>[]
  for (const name of new Set([...Object.keys(ours!), ...Object.keys(theirs!)])) {
    if (!bytesOf(ours![name]!).equals(bytesOf(theirs![name]!))) throw new Error(`Expected the same bytes of ${name}`)
  }
}
