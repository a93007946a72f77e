/** GGUF files written by hand, without the library. */
import { writeFileSync } from 'node:fs'

type Numbers = Uint8Array | Int32Array | Uint32Array | Float32Array
export type Value =
  | ['u8' | 'u32' | 'i32' | 'f32' | 'u64' | 'i64' | 'f64' | 'bool', number | bigint]
  | ['string', string]
  | ['strings', readonly string[]]
  | ['numbers', Numbers]
  | ['raw', number, Uint8Array]

export interface Tensor {
  name: string
  type: number
  /** Outermost first. */
  shape: readonly number[]
  data: Uint8Array
  /** Instead of the place that follows. */
  offset?: bigint
}

const typeIds = { u8: 0, u32: 4, i32: 5, f32: 6, bool: 7, u64: 10, i64: 11, f64: 12 } as const

export const u32 = (value: number) => Buffer.from(Uint32Array.of(value).buffer)
export const u64 = (value: bigint | number) => Buffer.from(BigUint64Array.of(BigInt(value)).buffer)
export const text = (value: string) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)])

function scalar(kind: keyof typeof typeIds, value: number | bigint): Buffer {
  const view = new DataView(new ArrayBuffer(8))
  if (kind === 'u64' || kind === 'i64') view.setBigInt64(0, BigInt(value), true)
  else if (kind === 'f64') view.setFloat64(0, Number(value), true)
  else if (kind === 'f32') view.setFloat32(0, Number(value), true)
  else if (kind === 'u8' || kind === 'bool') view.setUint8(0, Number(value))
  else view.setInt32(0, Number(value), true)
  const bytes = { u8: 1, bool: 1, u32: 4, i32: 4, f32: 4, u64: 8, i64: 8, f64: 8 }[kind]
  return Buffer.from(view.buffer, 0, bytes)
}

function encode(value: Value): Buffer {
  const [kind] = value
  if (kind === 'raw') return Buffer.concat([u32(value[1]), value[2]])
  if (kind === 'string') return Buffer.concat([u32(8), text(value[1])])
  if (kind === 'strings') return Buffer.concat([u32(9), u32(8), u64(value[1].length), ...value[1].map(text)])
  if (kind === 'numbers') {
    const [, numbers] = value
    const id = { Uint8Array: 0, Uint32Array: 4, Int32Array: 5, Float32Array: 6 }[numbers.constructor.name]!
    return Buffer.concat([u32(9), u32(id), u64(numbers.length), Buffer.from(numbers.buffer)])
  }
  return Buffer.concat([u32(typeIds[kind]), scalar(kind, value[1])])
}

const pad = (length: number, alignment: number) => Buffer.alloc((alignment - (length % alignment)) % alignment)

export interface GgufParts {
  metadata?: readonly (readonly [string, Value])[]
  tensors?: readonly Tensor[]
  version?: number
  alignment?: number
  tensorCount?: bigint
  valueCount?: bigint
}

export function ggufBytes(parts: GgufParts): Buffer {
  const { metadata = [], tensors = [], version = 3, alignment = 32 } = parts
  const head = [
    Buffer.from('GGUF'),
    u32(version),
    u64(parts.tensorCount ?? tensors.length),
    u64(parts.valueCount ?? metadata.length),
    ...metadata.flatMap(([key, value]) => [text(key), encode(value)]),
  ]
  const payload: Buffer[] = []
  let position = 0
  for (const { name, type, shape, data, offset } of tensors) {
    const dims = [...shape].reverse().map(u64)
    head.push(text(name), u32(shape.length), ...dims, u32(type), u64(offset ?? position))
    const padded = Buffer.concat([data, pad(data.length, alignment)])
    payload.push(padded)
    position += padded.length
  }
  const header = Buffer.concat(head)
  return Buffer.concat([header, pad(header.length, alignment), ...payload])
}

export function writeGguf(path: string, parts: GgufParts): string {
  writeFileSync(path, ggufBytes(parts))
  return path
}
