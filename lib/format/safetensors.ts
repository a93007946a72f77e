import type { ByteSource, ByteSourceInput, DTypeName, LongOperationOptions, TensorEntry } from '../../types/format'
import { checkPath, checkShape, checkString, wrongType, wrongValue } from '../check'
import { openByteSource } from './byte-source'
import { payloadBytes } from './element-types'
import { findTag, readSafetensorsHeader, type SafetensorsHeader } from './safetensors-header'
import { SafetensorsWriter } from './safetensors-writer'
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
  const totalBytes = rows.reduce((sum, { bytes }) => sum + bytes.length, 0)
  await using writer = await SafetensorsWriter.create(name, rows, { metadata: options?.metadata, signal })
  let doneBytes = 0
  for (const { key, bytes } of rows) {
    await writer.write(key, [bytes])
    onProgress?.({ doneBytes: (doneBytes += bytes.length), totalBytes })
  }
  await writer.finish()
}

function checkTensor(key: string, { dtype, shape, data }: SafetensorsTensor) {
  if (checkString('a name', key) === '__metadata__') throw wrongValue('another name', 'a tensor', key)
  const tag = findTag(dtype)
  if (!tag) throw wrongValue('a dtype of safetensors', `the dtype of ${JSON.stringify(key)}`, dtype)
  if (!ArrayBuffer.isView(data)) throw wrongType('a typed array', `the data of ${JSON.stringify(key)}`, data)
  const expected = payloadBytes(checkShape('shape', shape), tag.bytes)
  if (expected !== data.byteLength) throw wrongValue(`${expected} bytes`, `the data of ${JSON.stringify(key)}`, data)
  return { key, dtype, shape, bytes: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) }
}
