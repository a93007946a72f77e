/** The 4-bit codes of bitsandbytes: its tables, and its order of two codes in a byte. */
import type { Codebook, Nibbles } from '../../types/tensor'

/** `nf4`: the quantiles of a normal distribution; `fp4`: a sign and three bits in an order of its own, over 12. */
export const bnb4Tables: Readonly<Record<Codebook, Float32Array>> = {
  nf4: Float32Array.of(
    -1,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1,
  ),
  fp4: Float32Array.from([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], (value) => value / 12),
}

/** The codebook of exactly these 16 numbers. */
export function codebookOf(table: Float32Array): Codebook | undefined {
  const names = Object.keys(bnb4Tables) as Codebook[]
  return names.find((name) => table.length === 16 && bnb4Tables[name].every((value, i) => value === table[i]))
}

/** Elements of a block that bitsandbytes may have. */
export const bnb4BlockSizes: readonly number[] = [64, 128, 256, 512, 1024, 2048, 4096]

/** The order in which bitsandbytes writes: the first element in the high nibble. In memory it is the low one. */
export const bnb4Nibbles: Nibbles = 'high-first'

/** Puts the other element of each byte first, four bytes at a time: whole words of codes, in place. */
export function swapNibbles(codes: Uint8Array): Uint8Array {
  const words = new Uint32Array(codes.buffer, codes.byteOffset, codes.length / 4)
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!
    words[i] = ((word & 0x0f0f0f0f) << 4) | ((word >>> 4) & 0x0f0f0f0f)
  }
  return codes
}
