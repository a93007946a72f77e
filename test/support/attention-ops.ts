/** attention, attentionBackward and attentionCached of the addon with outputs allocated, and inputs for them. */
import type { AttentionDims } from './attention-reference'
import { toBf16 } from './bf16'
import { ops, seededValues, type OpOptions } from './native-ops'

export type CacheDType = 'f32' | 'f16' | 'bf16'

export interface AttentionInputs {
  q: Float32Array
  k: Float32Array
  v: Float32Array
}

/** Dims of an op on the CPU or CUDA; `starts` i32[B, T] is where the segment of each token begins. */
export type PackedDims = AttentionDims & { starts?: Int32Array }

/** Starts of B sequences that are each cut into segments of these lengths. */
export function startsOf(B: number, lengths: readonly number[]): Int32Array {
  let first = 0
  const row = lengths.flatMap((length) => Array<number>(length).fill((first += length) - length))
  return Int32Array.from(Array.from({ length: B }, () => row).flat())
}

/** Scores spread over several units, so that the softmax is neither flat nor one-hot. */
export function attentionInputs({ B, T, Q, KV, D }: AttentionDims, seed = 1): AttentionInputs {
  return {
    q: seededValues(B * T * Q * D, seed, 2),
    k: seededValues(B * T * KV * D, seed + 1, 2),
    v: seededValues(B * T * KV * D, seed + 2),
  }
}

export function attention(
  { q, k, v }: AttentionInputs,
  mask: Uint8Array | null,
  dims: PackedDims,
  options: OpOptions = {},
) {
  const y = new Float32Array(q.length).fill(NaN)
  const lse = new Float32Array(dims.B * dims.T * dims.Q).fill(NaN)
  ops.attention!(y, lse, q, k, v, mask, dims, options)
  return { y, lse }
}

export function attentionBackward(
  dy: Float32Array,
  { q, k, v }: AttentionInputs,
  mask: Uint8Array | null,
  dims: PackedDims,
  options: OpOptions = {},
) {
  const { y, lse } = attention({ q, k, v }, mask, dims, options)
  const dq = new Float32Array(q.length).fill(NaN)
  const dk = new Float32Array(k.length).fill(NaN)
  const dv = new Float32Array(v.length).fill(NaN)
  ops.attentionBackward!(dq, dk, dv, dy, y, lse, q, k, v, mask, dims, options)
  return { dq, dk, dv }
}

const word = new DataView(new ArrayBuffer(4))

/** The bits of finite `value` in a 16-bit type, rounded to nearest, ties to even. */
function narrow(value: number, dtype: 'f16' | 'bf16'): number {
  word.setFloat32(0, value)
  const bits = word.getUint32(0)
  if (dtype === 'bf16') return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
  const exponent = Math.max(-14, ((bits >>> 23) & 255) - 127)
  const units = Math.abs(value) * 2 ** (10 - exponent)
  const floor = Math.floor(units)
  const up = units - floor > 0.5 || (units - floor === 0.5 && floor % 2 === 1)
  return (value < 0 ? 0x8000 : 0) | (((exponent + 14) << 10) + floor + (up ? 1 : 0))
}

/** The value that a cache of `dtype` holds for `value`. */
export function rounded(value: number, dtype: CacheDType): number {
  if (dtype === 'f32') return value
  const bits = narrow(value, dtype)
  if (dtype === 'bf16') {
    word.setUint32(0, bits << 16)
    return word.getFloat32(0)
  }
  const exponent = (bits >>> 10) & 31
  const magnitude = exponent === 0 ? (bits & 1023) * 2 ** -24 : (1024 + (bits & 1023)) * 2 ** (exponent - 25)
  return bits & 0x8000 ? -magnitude : magnitude
}

/** k or v [T, KV, D] as pages [KV, pageTokens, D]; positions past T hold NaN, which nobody may read into a result. */
export function pagesOf(x: Float32Array, T: number, KV: number, D: number, pageTokens: number, dtype: CacheDType) {
  const elements =
    dtype === 'f32' ? x : dtype === 'bf16' ? toBf16(x) : Uint16Array.from(x, (value) => narrow(value, dtype))
  const nan = dtype === 'f32' ? NaN : 0x7fff
  return Array.from({ length: Math.ceil(T / pageTokens) }, (_, page) => {
    const values = new (dtype === 'f32' ? Float32Array : Uint16Array)(KV * pageTokens * D).fill(nan)
    for (let kv = 0; kv < KV; kv++) {
      for (let i = 0; i < pageTokens && page * pageTokens + i < T; i++) {
        const from = ((page * pageTokens + i) * KV + kv) * D
        values.set(elements.subarray(from, from + D), (kv * pageTokens + i) * D)
      }
    }
    return values
  })
}

export interface CachedDims {
  T: number
  offset: number
  Q: number
  KV: number
  D: number
  pageTokens: number
  dtype: CacheDType
}

export function attentionCached(
  q: Float32Array,
  kPages: (Float32Array | Uint16Array)[],
  vPages: (Float32Array | Uint16Array)[],
  dims: CachedDims,
  options: OpOptions = {},
) {
  const y = new Float32Array(dims.T * dims.Q * dims.D).fill(NaN)
  ops.attentionCached!(y, q, kPages, vPages, dims, options)
  return y
}
