/** The instruction sets this machine runs; each one it lacks is printed. */
import { ops, type OpOptions } from './native-ops'

type Isa = NonNullable<OpOptions['isa']>

export const isaLevels: Isa[] = (['portable', 'neon', 'avx2', 'avx512'] as const).filter((isa) => {
  try {
    ops.swiglu!(new Float32Array(1), new Float32Array(1), new Float32Array(1), 1, { isa })
    return true
  } catch (error) {
    console.log(`${isa} is skipped: ${(error as Error).message}`)
    return false
  }
})

export const THREADS = [1, 2, 3]

/** The same call under one, two and three threads must give equal bytes; returns them. */
export function sameForAllThreads<T extends ArrayLike<number>>(call: (threads: number) => T): T {
  const [first, ...others] = THREADS.map(call)
  for (const other of others) expect(other).toEqual(first)
  expect(call(1)).toEqual(first)
  return first!
}

/** (f(x + h) − f(x − h)) / 2h with the step that f32 really took, for one element of `x`. */
export function centralDifference(x: Float32Array, index: number, h: number, f: () => number): number {
  const kept = x[index]!
  x[index] = kept + h
  const above = x[index]!
  const high = f()
  x[index] = kept - h
  const below = x[index]!
  const low = f()
  x[index] = kept
  return (high - low) / (above - below)
}
