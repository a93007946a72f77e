import type { DTypeName } from '../../types/format'

/** Bit conversions between the float types of files. To a narrower type: to nearest, ties to even. */
const float = new Float32Array(1)
const bits = new Uint32Array(float.buffer)

export function bf16ToF32(value: number): number {
  bits[0] = value << 16
  return float[0]!
}

export function f32ToBf16(value: number): number {
  float[0] = value
  const raw = bits[0]!
  if ((raw & 0x7fffffff) > 0x7f800000) return (raw >>> 16) | 0x40 // a NaN stays a NaN
  return ((raw + 0x7fff + ((raw >>> 16) & 1)) >>> 16) & 0xffff
}

export function f16ToF32(value: number): number {
  const sign = value & 0x8000 ? -1 : 1
  const exponent = (value >> 10) & 31
  const mantissa = value & 0x3ff
  if (exponent === 31) return mantissa ? NaN : sign * Infinity
  if (exponent === 0) return sign * mantissa * 2 ** -24
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15)
}

export function f32ToF16(value: number): number {
  float[0] = value
  const raw = bits[0]!
  const sign = (raw >>> 16) & 0x8000
  const magnitude = raw & 0x7fffffff
  if (magnitude > 0x7f800000) return sign | 0x7e00
  if (magnitude >= 0x477ff000) return sign | 0x7c00 // at least 65520 rounds to infinity
  if (magnitude < 0x38800000) {
    float[0] = Math.abs(value) + 0.5 // subnormal: the float adder rounds at 2^-24
    return sign | (bits[0]! - 0x3f000000)
  }
  return sign | ((magnitude + 0xfff + ((magnitude >>> 13) & 1) - 0x38000000) >>> 13)
}

/** E4M3 (fn): bias 7, no infinities, 0x7F and 0xFF are NaN, largest 448, smallest 2^-9. */
export function e4m3ToF32(value: number): number {
  const sign = value & 0x80 ? -1 : 1
  const exponent = (value >> 3) & 15
  const mantissa = value & 7
  if (exponent === 15 && mantissa === 7) return NaN
  return exponent === 0 ? sign * mantissa * 2 ** -9 : sign * (1 + mantissa / 8) * 2 ** (exponent - 7)
}

/** The float types that a payload is converted between. */
export type FloatType = Extract<DTypeName, 'float32' | 'float16' | 'bfloat16' | 'float8_e4m3fn'>

const widen: Record<Exclude<FloatType, 'float32'>, (value: number) => number> = {
  float16: f16ToF32,
  bfloat16: bf16ToF32,
  float8_e4m3fn: e4m3ToF32,
}

/** Little-endian values of `type` as float32. */
export function toFloat32(type: FloatType, bytes: Uint8Array): Float32Array {
  // A copy, because the bytes may begin at an odd address.
  const { buffer } = Uint8Array.from(bytes)
  if (type === 'float32') return new Float32Array(buffer)
  const source = type === 'float8_e4m3fn' ? new Uint8Array(buffer) : new Uint16Array(buffer)
  return Float32Array.from(source, widen[type])
}

/** float32 values as bytes of `type`, rounded. */
export function fromFloat32(type: Exclude<FloatType, 'float8_e4m3fn'>, values: Float32Array): Uint8Array {
  if (type === 'float32') return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
  return new Uint8Array(Uint16Array.from(values, type === 'float16' ? f32ToF16 : f32ToBf16).buffer)
}
