/** Seeded random numbers for tests (mulberry32). */

/** Uniform in (0, 1). */
export function uniformSource(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 4294967296
  }
}

/** Normal(0, 1) by Box-Muller. */
export function normals(count: number, seed: number): Float64Array {
  const uniform = uniformSource(seed)
  const values = new Float64Array(count)
  for (let i = 0; i < count; i++) {
    values[i] = Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform())
  }
  return values
}

/** Normal(0, sigma) values; loops, because Float32Array.from with a function is slow on millions. */
export function gaussian(count: number, sigma: number, seed = 7): Float32Array {
  const base = normals(count, seed)
  const values = new Float32Array(count)
  for (let i = 0; i < count; i++) values[i] = base[i]! * sigma
  return values
}
