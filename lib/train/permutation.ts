/** Six rounds are more than the four that make a Feistel network of random functions look random. */
const rounds = 6

/** Mixes 32 bits (the finaliser of MurmurHash3). */
function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
  return (x ^ (x >>> 16)) >>> 0
}

/** One number of 32 bits from several; an order of the same numbers gives another. */
const mixAll = (...values: number[]): number => values.reduce((sum, value) => mix((sum + 0x9e3779b9) ^ value), 0)

/** A seed for a part of what another seed decides. */
export const deriveSeed = (seed: bigint, part: number): bigint => {
  const [low, high] = [Number(seed & 0xffffffffn), Number(seed >> 32n)]
  return (BigInt(mixAll(high, low, part, 1)) << 32n) | BigInt(mixAll(high, low, part, 2))
}

/**
 * A random order of 0 … count − 1 that depends on seed and epoch alone. Every place of it is computed by itself, so a
 * cursor resumes without a replay and no table is kept: a Feistel network over the next power of four, walked until it
 * leads back into the range.
 */
export class Permutation {
  readonly #count: number
  readonly #half: number
  readonly #keys: number[]

  constructor(count: number, seed: bigint, epoch: number) {
    this.#count = count
    let bits = 1
    while (4 ** bits < count) bits++
    this.#half = 2 ** bits
    const low = Number(seed & 0xffffffffn)
    const high = Number(seed >> 32n)
    this.#keys = Array.from({ length: rounds }, (_, round) => mixAll(high, low, epoch, round))
  }

  /** Which of the `count` is at this place of the order. */
  at(place: number): number {
    let value = place
    do {
      let left = Math.floor(value / this.#half)
      let right = value % this.#half
      for (const key of this.#keys) {
        const next = (left ^ mix(right ^ key)) & (this.#half - 1)
        left = right
        right = next
      }
      value = left * this.#half + right
    } while (value >= this.#count)
    return value
  }
}
