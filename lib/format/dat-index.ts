import type { ByteSource, DatEntry } from '../../types/format'
import { Qwen3Nvfp4Error, throwIfAborted, type ErrorDetails, type ErrorCode } from '../errors'
import { readFully } from './byte-source'
import { ByteWindow } from './byte-window'
import { findElementType, payloadBytes } from './element-types'
import { decodeVarint, maxVarintBytes } from './leb128'

/** Limits of this reader and writer; real keys are under 100 bytes and PyTorch has at most 64 dimensions. */
export const maxKeyBytes = 65535
export const maxDims = 64
export const defaultMaxEntries = 1 << 20

/** Smallest entry: one-byte key length, one-byte key, element type, ndim. Bounds a hostile entry count. */
const minEntryBytes = 4

/** The marker that exportsd.py writes for a type it does not know. */
const exporterUnknownType = 4711

const optimizers = [
  'AdamW',
  'Adam',
  'Adamax',
  'Adadelta',
  'Adagrad',
  'ASGD',
  'NAdam',
  'RAdam',
  'RMSProp',
  'Rprop',
  'SGD',
]

export interface IndexOptions {
  signal?: AbortSignal
  maxEntries?: number
}

/** Walks the headers of a `.dat` and skips the payloads. Memory: one window, and the index itself. */
export async function readDatIndex(source: ByteSource, options: IndexOptions = {}): Promise<DatEntry[]> {
  const { signal, maxEntries = defaultMaxEntries } = options
  const window = new ByteWindow(source, (message, offset) =>
    datError('DAT_TRUNCATED', source.name, message, { offset }),
  )
  throwIfAborted(signal)
  const count = await readVarint(window, 'the entry count')
  try {
    if (count > maxEntries) {
      const message = `${count} entries, more than the ${maxEntries} that maxEntries allows`
      throw datError('DAT_TOO_MANY_ENTRIES', source.name, message, { offset: 0 })
    }
    if (count * minEntryBytes > source.size - window.position) {
      const message = `the file ends at byte ${source.size}, too early for the ${count} entries that it announces`
      throw datError('DAT_TRUNCATED', source.name, message, { offset: source.size })
    }
    const entries: DatEntry[] = []
    const keys = new Set<string>()
    while (entries.length < count) {
      throwIfAborted(signal)
      const entry = await readEntry(window, entries.length)
      if (keys.has(entry.key)) {
        throw datError('DAT_DUPLICATE_KEY', source.name, 'the key occurs twice', {
          key: entry.key,
          offset: entry.offset,
        })
      }
      keys.add(entry.key)
      entries.push(entry)
    }
    if (window.position < source.size) {
      const extra = source.size - window.position
      const message = `${extra} bytes follow the last of ${count} entries`
      throw datError('DAT_OVERSIZED', source.name, message, { offset: window.position })
    }
    return entries
  } catch (error) {
    throw (await optimizerStateError(source, error)) ?? error
  }
}

/** An error of the format, naming file, entry and byte. */
export function datError(code: ErrorCode, file: string, message: string, details: ErrorDetails = {}): Qwen3Nvfp4Error {
  const key = details.key === undefined ? '' : ` entry ${JSON.stringify(details.key)}`
  const at = details.offset === undefined ? '' : ` at byte ${details.offset}`
  return new Qwen3Nvfp4Error(code, `${file}${key}${at}: ${message}`, { ...details, file })
}

async function readEntry(window: ByteWindow, index: number): Promise<DatEntry> {
  const file = window.source.name
  const start = window.position
  const keyBytes = await readVarint(window, `the key length of entry ${index}`)
  if (keyBytes === 0 || keyBytes > maxKeyBytes) {
    const message = `entry ${index} has a key of ${keyBytes} bytes; 1 to ${maxKeyBytes} are allowed`
    throw datError('DAT_BAD_KEY', file, message, { offset: start })
  }
  const key = decodeKey(await window.take(keyBytes, `the key of entry ${index}`))
  if (key === undefined)
    throw datError('DAT_BAD_KEY', file, `the key of entry ${index} is not UTF-8`, { offset: start })

  const typeOffset = window.position
  const elementType = await readVarint(window, 'the element type', key)
  const type = findElementType(elementType)
  if (!type) {
    const reason =
      elementType === exporterUnknownType ? ', which exportsd.py writes for a type that it does not know' : ''
    throw datError('DAT_UNKNOWN_TYPE', file, `element type ${elementType}${reason}`, { key, offset: typeOffset })
  }

  const shapeOffset = window.position
  const ndim = await readVarint(window, 'the number of dimensions', key)
  if (ndim > maxDims) {
    throw datError('DAT_BAD_SHAPE', file, `${ndim} dimensions; at most ${maxDims} are allowed`, {
      key,
      offset: shapeOffset,
    })
  }
  const shape: number[] = []
  while (shape.length < ndim) shape.push(await readVarint(window, `dimension ${shape.length}`, key))
  const bytes = payloadBytes(shape, type.bytes)
  if (bytes === undefined) {
    const message = `shape [${shape.join(', ')}] of ${type.dtype} is larger than 2^53 bytes`
    throw datError('DAT_BAD_SHAPE', file, message, { key, offset: shapeOffset })
  }
  const offset = window.position
  if (bytes > window.source.size - offset) {
    const message = `a payload of ${bytes} bytes does not fit into the ${window.source.size - offset} that are left`
    throw datError('DAT_TRUNCATED', file, message, { key, offset })
  }
  window.position = offset + bytes
  return { key, elementType, dtype: type.dtype, shape, offset, bytes }
}

/** Keeps a byte order mark and refuses malformed bytes, so that a key always encodes back to the bytes it came from. */
function decodeKey(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return undefined
  }
}

async function readVarint(window: ByteWindow, what: string, key?: string): Promise<number> {
  const offset = window.position
  const { bytes, at, end } = await window.peek(maxVarintBytes)
  const result = decodeVarint(bytes, at, end)
  if (typeof result === 'object') {
    window.position += result.next - at
    return result.value
  }
  const file = window.source.name
  if (result === 'truncated') throw datError('DAT_TRUNCATED', file, `the file ends inside ${what}`, { key, offset })
  throw datError('DAT_BAD_VARINT', file, `${what} is a varint that is ${result}`, { key, offset })
}

/** exportsd.py's save_adamw and relatives start with the optimizer's name where a state dict has its entry count. */
async function optimizerStateError(source: ByteSource, cause: unknown): Promise<Qwen3Nvfp4Error | undefined> {
  if (!(cause instanceof Qwen3Nvfp4Error) || !cause.code.startsWith('DAT_')) return undefined
  const head = new Uint8Array(Math.min(16, source.size))
  await readFully(source, head, 0, () => cause)
  const name = new TextDecoder('latin1').decode(head.subarray(1, 1 + (head[0] ?? 0)))
  if (!optimizers.includes(name)) return undefined
  const message = `this is the state of a ${name} optimizer as exportsd.py writes it, not a state dict of tensors`
  return datError('DAT_OPTIMIZER_STATE', source.name, message, { cause })
}
