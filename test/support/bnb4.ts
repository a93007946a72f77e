/** bitsandbytes' two codebooks and an independent decoder of its codes, written from their definitions. */
import { seededValues } from './native-ops'
import type { Weight } from './weights'

export const codebookNames = ['nf4', 'fp4'] as const
export type CodebookName = (typeof codebookNames)[number]

const { fround } = Math

const FP4_TWELFTHS = [0, 0.0625, 8, 12, 4, 6, 2, 3]

export const CODEBOOKS: Record<CodebookName, number[]> = {
  nf4: [
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
  ].map(fround),
  fp4: [...FP4_TWELFTHS, ...FP4_TWELFTHS.map((twelfths) => 0 - twelfths)].map((twelfths) => fround(twelfths / 12)),
}

/** A weight of any codes, with block magnitudes in (0, 1). */
export function seededBnb4(codebook: CodebookName, rows: number, cols: number, seed: number): Weight {
  const count = rows * cols
  const codes = Uint8Array.from(seededValues(count / 2, seed), (x) => (x + 1) * 128)
  return { storage: 'bnb4', codebook, rows, cols, codes, absmax: seededValues(count / 64, seed + 1).map(Math.abs) }
}

/** Its values: the low nibble is the even column, every 64 columns have one magnitude, and the product rounds once. */
export function decodeBnb4({ rows, cols, codes, absmax, codebook }: Weight): Float32Array {
  const values = new Float32Array(rows * cols)
  for (let i = 0; i < values.length; i++) {
    const code = (codes![i >> 1]! >> (4 * (i % 2))) & 15
    values[i] = CODEBOOKS[codebook!][code]! * absmax![i >> 6]!
  }
  return values
}
