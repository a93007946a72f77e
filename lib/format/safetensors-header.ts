import type { ByteSource, DTypeName, TensorEntry } from '../../types/format'
import { describe } from '../check'
import { Qwen3Nvfp4Error, type ErrorDetails, type ErrorCode } from '../errors'
import { readFully } from './byte-source'
import { payloadBytes } from './element-types'

/** The format's own limit of its JSON header. */
export const maxHeaderBytes = 100_000_000

export interface SafetensorsTag {
  readonly dtype: DTypeName
  /** Bytes of one element. */
  readonly bytes: number
}

export const safetensorsTags: Readonly<Record<string, SafetensorsTag>> = {
  F64: { dtype: 'float64', bytes: 8 },
  F32: { dtype: 'float32', bytes: 4 },
  F16: { dtype: 'float16', bytes: 2 },
  BF16: { dtype: 'bfloat16', bytes: 2 },
  I64: { dtype: 'int64', bytes: 8 },
  I32: { dtype: 'int32', bytes: 4 },
  I16: { dtype: 'int16', bytes: 2 },
  I8: { dtype: 'int8', bytes: 1 },
  U64: { dtype: 'uint64', bytes: 8 },
  U32: { dtype: 'uint32', bytes: 4 },
  U16: { dtype: 'uint16', bytes: 2 },
  U8: { dtype: 'uint8', bytes: 1 },
  BOOL: { dtype: 'bool', bytes: 1 },
  C64: { dtype: 'complex64', bytes: 8 },
  F8_E4M3: { dtype: 'float8_e4m3fn', bytes: 1 },
  F8_E5M2: { dtype: 'float8_e5m2', bytes: 1 },
  F8_E8M0: { dtype: 'float8_e8m0fnu', bytes: 1 },
}

/** The tag of a dtype; undefined when safetensors has none. */
export function findTag(dtype: DTypeName): (SafetensorsTag & { tag: string }) | undefined {
  const found = Object.entries(safetensorsTags).find(([, type]) => type.dtype === dtype)
  return found && { tag: found[0], ...found[1] }
}

export interface SafetensorsHeader {
  /** In the order of their payloads. */
  entries: TensorEntry[]
  metadata: Record<string, string>
}

export async function readSafetensorsHeader(source: ByteSource): Promise<SafetensorsHeader> {
  const fail = failures(source.name)
  const truncated = () => fail('SAFETENSORS_TRUNCATED', `the file ends at byte ${source.size}, inside the header`)
  if (source.size < 8) throw truncated()
  const prefix = new Uint8Array(8)
  await readFully(source, prefix, 0, truncated)
  const declared = new DataView(prefix.buffer).getBigUint64(0, true)
  if (declared > BigInt(maxHeaderBytes)) {
    throw fail('SAFETENSORS_BAD_HEADER', `a header of ${declared} bytes; at most ${maxHeaderBytes} are allowed`)
  }
  const length = Number(declared)
  if (length > source.size - 8) throw truncated()
  const bytes = new Uint8Array(length)
  await readFully(source, bytes, 8, truncated)

  const { __metadata__: metadata = {}, ...tensors } = parseJson(bytes, fail)
  if (!isRecord(metadata) || Object.values(metadata).some((value) => typeof value !== 'string')) {
    throw fail('SAFETENSORS_BAD_HEADER', '__metadata__ is not a map of strings')
  }
  const start = 8 + length
  const entries = Object.entries(tensors).map(([key, value]) => parseEntry(key, value, start, fail))
  checkTiling(entries, start, source.size, fail)
  return { entries, metadata: metadata as Record<string, string> }
}

type Fail = (code: ErrorCode, message: string, details?: ErrorDetails) => Qwen3Nvfp4Error

function failures(file: string): Fail {
  return (code, message, details = {}) => {
    const key = details.key === undefined ? '' : ` entry ${describe(details.key)}:`
    return new Qwen3Nvfp4Error(code, `${file}:${key} ${message}`, { ...details, file })
  }
}

function parseJson(bytes: Uint8Array, fail: Fail): Record<string, unknown> {
  let text: string
  let header: unknown
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    header = JSON.parse(text)
  } catch (cause) {
    throw fail('SAFETENSORS_BAD_HEADER', 'the header is not UTF-8 JSON', { cause, offset: 8 })
  }
  if (!isRecord(header)) throw fail('SAFETENSORS_BAD_HEADER', 'the header is not a JSON object', { offset: 8 })
  const duplicate = findDuplicateKey(text)
  if (duplicate !== undefined) {
    throw fail('SAFETENSORS_DUPLICATE_KEY', 'the name occurs twice in one object of the header', { key: duplicate })
  }
  return header
}

function parseEntry(key: string, value: unknown, start: number, fail: Fail): TensorEntry {
  if (!isRecord(value)) throw fail('SAFETENSORS_BAD_HEADER', 'is not an object', { key })
  const { dtype, shape, data_offsets: offsets } = value
  const tag = typeof dtype === 'string' && Object.hasOwn(safetensorsTags, dtype) ? safetensorsTags[dtype] : undefined
  if (!tag) throw fail('SAFETENSORS_UNKNOWN_TYPE', `dtype ${show(dtype)} is not supported`, { key })
  const bytes = isCounts(shape) ? payloadBytes(shape, tag.bytes) : undefined
  if (!isCounts(shape) || bytes === undefined) {
    throw fail('SAFETENSORS_BAD_SHAPE', `shape ${show(shape)} of ${tag.dtype}`, { key })
  }
  if (!isCounts(offsets) || offsets.length !== 2 || offsets[1]! - offsets[0]! !== bytes) {
    const message = `data_offsets ${show(offsets)} do not span the ${bytes} bytes of the shape`
    throw fail('SAFETENSORS_BAD_OFFSETS', message, { key })
  }
  return { key, dtype: tag.dtype, shape, offset: start + offsets[0]!, bytes }
}

/** Payloads follow each other without holes or overlaps and end with the file. Sorts the entries by position. */
function checkTiling(entries: TensorEntry[], start: number, size: number, fail: Fail): void {
  entries.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)
  let position = start
  for (const { key, offset, bytes } of entries) {
    if (offset !== position) {
      const message = `begins at byte ${offset}, ${offset < position ? 'inside' : 'past'} the end of its neighbour at ${position}`
      throw fail('SAFETENSORS_BAD_OFFSETS', message, { key, offset })
    }
    position = offset + bytes
    if (position > size) {
      const message = `the file ends at byte ${size}, the payload at ${position}`
      throw fail('SAFETENSORS_TRUNCATED', message, { key, offset })
    }
  }
  if (position !== size) {
    throw fail('SAFETENSORS_BAD_OFFSETS', `${size - position} bytes follow the last payload`, { offset: position })
  }
}

/** JSON.parse keeps the last of equal keys; two readers could see two different tensors. `text` is valid JSON. */
function findDuplicateKey(text: string): string | undefined {
  const objects: (Set<string> | undefined)[] = []
  for (let i = 0; i < text.length; i++) {
    const letter = text[i]
    if (letter === '{') objects.push(new Set())
    else if (letter === '[') objects.push(undefined)
    else if (letter === '}' || letter === ']') objects.pop()
    else if (letter === '"') {
      const end = endOfString(text, i)
      const keys = isFollowedByColon(text, end) ? objects.at(-1) : undefined
      if (keys) {
        const key = JSON.parse(text.slice(i, end)) as string
        if (keys.has(key)) return key
        keys.add(key)
      }
      i = end - 1
    }
  }
  return undefined
}

/** The place after the closing quote of the string that begins at `start`. */
function endOfString(text: string, start: number): number {
  let i = start + 1
  while (text[i] !== '"') i += text[i] === '\\' ? 2 : 1
  return i + 1
}

function isFollowedByColon(text: string, at: number): boolean {
  while (' \t\r\n'.includes(text[at] ?? 'x')) at++
  return text[at] === ':'
}

/** A value of a hostile header in a few letters. */
function show(value: unknown): string {
  const isShort = Array.isArray(value) && value.length <= 8 && value.every((item) => typeof item === 'number')
  return isShort ? `[${value.join(', ')}]` : describe(value)
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0)
}
