/** Builds .dat bytes by hand, valid or not: independent of the writer under test. */
export type Piece = number | string | Uint8Array | number[]

/** Plain numbers are varints, strings their UTF-8 bytes, arrays raw bytes. */
export function datBytes(...pieces: Piece[]): Uint8Array {
  return Buffer.concat(
    pieces.map((piece) => {
      if (typeof piece === 'number') return varint(BigInt(piece))
      return typeof piece === 'string' ? Buffer.from(piece) : Buffer.from(piece)
    }),
  )
}

/** A varint by the book, in bigint arithmetic. */
export function varint(value: bigint): Buffer {
  const bytes: number[] = []
  do {
    bytes.push(Number(value & 127n) | (value > 127n ? 128 : 0))
    value >>= 7n
  } while (value > 0n)
  return Buffer.from(bytes)
}

/** One whole entry. */
export function datEntry(
  key: string,
  elementType: number,
  shape: number[],
  payload: number[] | Uint8Array,
): Uint8Array {
  return datBytes(Buffer.byteLength(key), key, elementType, shape.length, ...shape, payload)
}
