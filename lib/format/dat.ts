import type { ByteSourceInput, DatEntry, DatTensor, LongOperationOptions } from '../../types/format'
import { wrongType, wrongValue } from '../check'
import { datError } from './dat-index'
import { DatReader, type DatOpenOptions } from './dat-reader'
import { checkElementType, DatWriter, type DatPayload } from './dat-writer'
import { payloadBytes } from './element-types'
import { checkLongOptions } from './tensor-reader'

/** What replaces a payload: the bytes, or a function that gives them when the entry's turn comes. */
export type DatReplacement = DatPayload | ((entry: DatEntry) => DatPayload | Promise<DatPayload>)

export type DatReplacements = ReadonlyMap<string, DatReplacement> | Readonly<Record<string, DatReplacement>>

/** Reads a whole `.dat` into memory, in file order. */
export async function readDat(
  input: ByteSourceInput,
  options?: LongOperationOptions & DatOpenOptions,
): Promise<Map<string, DatTensor>> {
  const { signal, onProgress } = checkLongOptions(options)
  await using reader = await DatReader.open(input, options)
  const totalBytes = reader.summary().payloadBytes
  const tensors = new Map<string, DatTensor>()
  let doneBytes = 0
  for (const { key, elementType, shape, bytes } of reader.entries) {
    tensors.set(key, { elementType, shape: [...shape], data: await reader.read(key, { signal }) })
    onProgress?.({ doneBytes: (doneBytes += bytes), totalBytes })
  }
  return tensors
}

/** Writes tensors as a `.dat`, atomically, in the order given. */
export async function writeDat(
  path: string | URL,
  tensors: ReadonlyMap<string, DatTensor> | Readonly<Record<string, DatTensor>>,
  options?: LongOperationOptions,
): Promise<void> {
  const { signal, onProgress } = checkLongOptions(options)
  const entries = toEntries(tensors, 'tensors')
  const sizes = entries.map(([key, tensor]) => tensorBytes(key, tensor))
  const totalBytes = sizes.reduce((a, b) => a + b, 0)
  await using writer = await DatWriter.create(path, { entries: entries.length, signal })
  let doneBytes = 0
  for (const [i, [key, { elementType, shape, data }]] of entries.entries()) {
    await writer.write(key, elementType, shape, data)
    onProgress?.({ doneBytes: (doneBytes += sizes[i]!), totalBytes })
  }
  await writer.finish()
}

/**
 * Copies a `.dat`, replacing the payloads of some keys by others of the same size. Keys, order, types and shapes stay;
 * with no replacement the copy is byte for byte the input. `output` may be `input`. Memory stays constant.
 */
export async function rewriteDat(
  input: ByteSourceInput,
  output: string | URL,
  replacements: DatReplacements = {},
  options?: LongOperationOptions,
): Promise<{ replaced: number }> {
  const { signal, onProgress } = checkLongOptions(options)
  const changes = new Map(toEntries(replacements, 'replacements'))
  await using reader = await DatReader.open(input, { signal })
  const missing = [...changes.keys()].find((key) => !reader.has(key))
  if (missing !== undefined)
    throw datError('DAT_NO_SUCH_KEY', reader.file, 'a replacement names no entry', { key: missing })
  const totalBytes = reader.summary().payloadBytes
  await using writer = await DatWriter.create(output, { entries: reader.entries.length, signal })
  let doneBytes = 0
  for (const entry of reader.entries) {
    const change = changes.get(entry.key)
    const payload = typeof change === 'function' ? await change(entry) : change
    await writer.write(entry.key, entry.elementType, entry.shape, payload ?? reader.stream(entry.key, { signal }))
    onProgress?.({ doneBytes: (doneBytes += entry.bytes), totalBytes })
  }
  await writer.finish()
  return { replaced: changes.size }
}

function toEntries<T>(value: ReadonlyMap<string, T> | Readonly<Record<string, T>>, name: string): [string, T][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw wrongType('a Map or an object', name, value)
  return Symbol.iterator in value ? [...(value as ReadonlyMap<string, T>)] : Object.entries(value)
}

/** Refuses a tensor before the file is begun, and says how many bytes it has. */
function tensorBytes(key: string, tensor: DatTensor): number {
  if (!ArrayBuffer.isView(tensor?.data))
    throw wrongType('a typed array', `the data of ${JSON.stringify(key)}`, tensor?.data)
  const bytes = payloadBytes(tensor.shape, checkElementType(tensor.elementType).bytes)
  if (bytes !== tensor.data.byteLength) {
    throw wrongValue(
      `${bytes} bytes (shape [${tensor.shape.join(', ')}])`,
      `the data of ${JSON.stringify(key)}`,
      tensor.data,
    )
  }
  return bytes
}
