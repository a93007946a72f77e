import type { ByteSource, ByteSourceInput, DTypeName, LongOperationOptions, TensorEntry } from '../../types/format'
import { checkPath, checkShape, checkString, wrongType, wrongValue } from '../check'
import { throwIfAborted } from '../errors'
import { AtomicFile } from './atomic-file'
import { openByteSource } from './byte-source'
import { payloadBytes } from './element-types'
import { readSafetensorsHeader, safetensorsTags, type SafetensorsHeader } from './safetensors-header'
import { checkLongOptions, TensorReader } from './tensor-reader'

/** Reads a safetensors file; the whole header is checked before anything is read. */
export class SafetensorsReader extends TensorReader<TensorEntry> {
  /** The file's own notes, `__metadata__`. */
  readonly metadata: Readonly<Record<string, string>>

  private constructor(source: ByteSource, { entries, metadata }: SafetensorsHeader) {
    super(source, entries, {
      truncated: 'SAFETENSORS_TRUNCATED',
      noSuchKey: 'SAFETENSORS_NO_SUCH_KEY',
      tooLarge: 'SAFETENSORS_ENTRY_TOO_LARGE',
    })
    this.metadata = metadata
  }

  static async open(input: ByteSourceInput): Promise<SafetensorsReader> {
    const source = await openByteSource(input)
    try {
      return new SafetensorsReader(source, await readSafetensorsHeader(source))
    } catch (error) {
      await source.close()
      throw error
    }
  }
}

export interface SafetensorsTensor {
  dtype: DTypeName
  shape: number[]
  data: ArrayBufferView
}

export interface SafetensorsWriteOptions extends LongOperationOptions {
  /** Notes stored as `__metadata__`. */
  metadata?: Record<string, string>
}

/** Writes tensors as one safetensors file, atomically; wide elements first, so that every payload is aligned. */
export async function writeSafetensors(
  path: string | URL,
  tensors: ReadonlyMap<string, SafetensorsTensor>,
  options?: SafetensorsWriteOptions,
): Promise<void> {
  const name = checkPath('path', path)
  const { signal, onProgress } = checkLongOptions(options)
  if (!(tensors instanceof Map)) throw wrongType('a Map', 'tensors', tensors)
  const rows = [...(tensors as Map<string, SafetensorsTensor>)].map(([key, tensor]) => checkTensor(key, tensor))
  rows.sort((a, b) => b.elementBytes - a.elementBytes)

  const header: Record<string, unknown> = Object.create(null)
  if (options?.metadata) header['__metadata__'] = options.metadata
  let totalBytes = 0
  for (const { key, tag, shape, bytes } of rows) {
    header[key] = { dtype: tag, shape, data_offsets: [totalBytes, (totalBytes += bytes.length)] }
  }
  const json = new TextEncoder().encode(JSON.stringify(header))
  const padded = new Uint8Array(8 + Math.ceil(json.length / 8) * 8).fill(0x20)
  new DataView(padded.buffer).setBigUint64(0, BigInt(padded.length - 8), true)
  padded.set(json, 8)

  throwIfAborted(signal)
  const file = await AtomicFile.create(name)
  try {
    await file.write(padded)
    for (const { bytes } of rows) {
      throwIfAborted(signal)
      await file.write(bytes)
      onProgress?.({ doneBytes: file.position - padded.length, totalBytes })
    }
    await file.commit()
  } catch (error) {
    await file.discard()
    throw error
  }
}

function checkTensor(key: string, { dtype, shape, data }: SafetensorsTensor) {
  if (checkString('a name', key) === '__metadata__') throw wrongValue('another name', 'a tensor', key)
  const found = Object.entries(safetensorsTags).find(([, type]) => type.dtype === dtype)
  if (!found) throw wrongValue('a dtype of safetensors', `the dtype of ${JSON.stringify(key)}`, dtype)
  const [tag, { bytes: elementBytes }] = found
  if (!ArrayBuffer.isView(data)) throw wrongType('a typed array', `the data of ${JSON.stringify(key)}`, data)
  const expected = payloadBytes(checkShape('shape', shape), elementBytes)
  if (expected !== data.byteLength) throw wrongValue(`${expected} bytes`, `the data of ${JSON.stringify(key)}`, data)
  return { key, tag, elementBytes, shape, bytes: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) }
}
