/** The blocks of GGUF files, in which scales and values lie side by side; csrc/format/ggml_blocks.h reads them. */
import { f16ToF32, f32ToF16 } from './floats'

const nvfp4Columns = 64
const q8Columns = 32
const q8Bytes = 34

/**
 * NVFP4 as ggml has it, in blocks of 64 columns: 4 E4M3 scales, then 8 bytes for each of them. Of 16 columns, byte j has
 * column j in its low nibble and column j + 8 in its high one, where `codes` has neighbours (2j, 2j + 1) in a byte. So
 * columns 0, 1, 8 and 9 are bytes 0 and 4 of `codes` and bytes 0 and 1 of a block.
 */
export function packGgmlNvfp4(codes: Uint8Array, scales: Uint8Array): Uint8Array {
  const blocks = new Uint8Array((codes.length * 2 * 36) / nvfp4Columns)
  let out = 0
  for (let block = 0; block < scales.length; block += 4) {
    for (let s = 0; s < 4; s++) blocks[out++] = scales[block + s]!
    for (let at = block * 8; at < block * 8 + 32; at += 8) {
      for (let j = 0; j < 4; j++) {
        const low = codes[at + j]!
        const high = codes[at + j + 4]!
        blocks[out++] = (low & 15) | ((high & 15) << 4)
        blocks[out++] = (low >> 4) | (high & 0xf0)
      }
    }
  }
  return blocks
}

/** What became of values: error = new − old. */
export interface PackErrors {
  squaredError: number
  squares: number
  largestError: number
}

/**
 * Q8_0: blocks of 32 columns, an fp16 scale amax / 127 and 32 signed bytes, each x / scale to nearest, halves away from
 * zero; the bytes are those of ggml. A block that fp16 cannot scale overflows to infinity, which `errors` shows.
 */
export function packQ8(values: Float32Array, errors: PackErrors): Uint8Array {
  const blocks = new Uint8Array((values.length / q8Columns) * q8Bytes)
  const signed = new Int8Array(blocks.buffer)
  let { squaredError, squares, largestError } = errors
  let out = 0
  for (let begin = 0; begin < values.length; begin += q8Columns) {
    let amax = 0
    for (let i = begin; i < begin + q8Columns; i++) {
      const magnitude = Math.abs(values[i]!)
      if (magnitude > amax) amax = magnitude
    }
    const scale = Math.fround(amax / 127)
    const inverse = scale > 0 ? Math.fround(1 / scale) : 0
    const bits = f32ToF16(scale)
    const stored = f16ToF32(bits)
    blocks[out++] = bits & 0xff
    blocks[out++] = bits >> 8
    for (let i = begin; i < begin + q8Columns; i++) {
      const x = values[i]!
      const scaled = Math.fround(x * inverse)
      const code = (scaled < 0 ? scaled - 0.5 : scaled + 0.5) | 0
      signed[out++] = code
      const error = stored * code - x
      squaredError += error * error
      squares += x * x
      if (Math.abs(error) > largestError) largestError = Math.abs(error)
    }
  }
  Object.assign(errors, { squaredError, squares, largestError })
  return blocks
}
