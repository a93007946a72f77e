/** Unsigned LEB128 up to 2^53 - 1: seven bits a byte, least significant first, high bit = more. */

/** The most bytes that a value below 2^53 takes. */
export const maxVarintBytes = 8

export type VarintProblem = 'truncated' | 'too large' | 'not the shortest form'

export function encodeVarint(value: number): Uint8Array {
  const bytes: number[] = []
  // Division, not shifts: a shift would cut the value to 32 bits.
  while (value >= 128) {
    bytes.push((value % 128) | 128)
    value = Math.floor(value / 128)
  }
  bytes.push(value)
  return Uint8Array.from(bytes)
}

/**
 * Reads a value from bytes [at, end). A padded encoding (last byte 0) is refused, because it would make two different
 * files of the same tensors and no known writer produces it.
 */
export function decodeVarint(
  bytes: Uint8Array,
  at: number,
  end: number,
): { value: number; next: number } | VarintProblem {
  let value = 0
  let unit = 1
  for (let i = 0; ; i++) {
    if (i === maxVarintBytes) return 'too large'
    if (at + i >= end) return 'truncated'
    const byte = bytes[at + i]!
    value += (byte & 127) * unit
    if (byte < 128) {
      if (i > 0 && byte === 0) return 'not the shortest form'
      return value <= Number.MAX_SAFE_INTEGER ? { value, next: at + i + 1 } : 'too large'
    }
    unit *= 128
  }
}
