/** Seeded weight objects for the native ops (`weight_view` in csrc/binding/ops/ops.h), in every storage. */
import { seededValues } from './native-ops'

export type WeightKind = 'nvfp4' | 'nvfp4+residual' | 'f32' | 'f16' | 'bf16'

export interface Weight {
  storage: 'nvfp4' | 'bnb4' | 'f32' | 'f16' | 'bf16'
  rows: number
  cols: number
  dense?: Float32Array | Uint16Array
  codes?: Uint8Array
  scales?: Uint8Array
  globalScale?: number
  residualCodes?: Uint8Array
  residualScales?: Uint8Array
  residualGlobalScale?: number
  codebook?: 'nf4' | 'fp4'
  absmax?: Float32Array
}

const { floor } = Math
const WORDS = new Uint32Array(1)
const FLOATS = new Float32Array(WORDS.buffer)

/** Truncates to bf16: inputs need no particular rounding, only to be the same numbers everywhere. */
const bf16Bits = (value: number) => {
  FLOATS[0] = value
  return WORDS[0]! >>> 16
}

/** Truncates to f16, normal numbers only (smaller ones become signed zero). */
const f16Bits = (value: number) => {
  FLOATS[0] = value
  const sign = (WORDS[0]! >>> 16) & 0x8000
  const magnitude = WORDS[0]! & 0x7fffffff
  return magnitude < 0x38800000 ? sign : sign | ((magnitude >>> 13) - (112 << 10))
}

/** Bytes from [low, high], every value of the range in turn mixed with seeded ones. */
function seededBytes(count: number, seed: number, low: number, high: number): Uint8Array {
  const values = seededValues(count, seed)
  const bytes = new Uint8Array(count)
  for (let i = 0; i < count; i++) bytes[i] = low + floor(((values[i]! + 1) / 2) * (high - low + 1))
  return bytes
}

/**
 * A weight of about unit size. NVFP4 codes are any byte; scales are E4M3 bytes from subnormal (0x01) to 448 (0x7e)
 * around 1, so that products stay comparable in size.
 */
export function seededWeight(kind: WeightKind, rows: number, cols: number, seed: number): Weight {
  const count = rows * cols
  if (kind === 'f32') return { storage: kind, rows, cols, dense: seededValues(count, seed) }
  if (kind === 'f16') return { storage: kind, rows, cols, dense: Uint16Array.from(seededValues(count, seed), f16Bits) }
  if (kind === 'bf16')
    return { storage: kind, rows, cols, dense: Uint16Array.from(seededValues(count, seed), bf16Bits) }
  const weight: Weight = {
    storage: 'nvfp4',
    rows,
    cols,
    codes: seededBytes(count / 2, seed, 0, 255),
    scales: seededBytes(count / 16, seed + 1, 0x28, 0x3c),
    globalScale: 0.3,
  }
  if (kind === 'nvfp4') return weight
  weight.residualCodes = seededBytes(count / 2, seed + 2, 0, 255)
  weight.residualScales = seededBytes(count / 16, seed + 3, 0x01, 0x28)
  weight.residualGlobalScale = 0.1
  return weight
}
