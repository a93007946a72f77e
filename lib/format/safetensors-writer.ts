import type { DTypeName } from '../../types/format'
import { Qwen3Nvfp4Error, throwIfAborted } from '../errors'
import { AtomicFile } from './atomic-file'
import { payloadBytes } from './element-types'
import { findTag } from './safetensors-header'

export interface SafetensorsPlan {
  key: string
  dtype: DTypeName
  shape: readonly number[]
}

export interface SafetensorsWriterOptions {
  /** Notes stored as `__metadata__`. */
  metadata?: Record<string, string>
  signal?: AbortSignal
}

interface Place {
  begin: number
  bytes: number
  written: boolean
}

/**
 * Writes a safetensors file whose tensors are known beforehand and come in any order. Wide elements stand first, so that
 * every payload is aligned. The file appears under its name when `finish` resolves; else nothing stays.
 */
export class SafetensorsWriter implements AsyncDisposable {
  readonly #file: AtomicFile
  readonly #places: Map<string, Place>
  readonly #signal: AbortSignal | undefined
  readonly #end: number
  #finished = false

  private constructor(file: AtomicFile, places: Map<string, Place>, end: number, signal: AbortSignal | undefined) {
    this.#file = file
    this.#places = places
    this.#end = end
    this.#signal = signal
  }

  /** The dtypes are those of safetensors, and the keys differ. */
  static async create(
    path: string,
    tensors: readonly SafetensorsPlan[],
    { metadata, signal }: SafetensorsWriterOptions = {},
  ): Promise<SafetensorsWriter> {
    const { header, places, end } = layOut(tensors, metadata)
    throwIfAborted(signal)
    const writer = new SafetensorsWriter(await AtomicFile.create(path), places, end, signal)
    try {
      await writer.#file.writeAt(header, 0)
    } catch (error) {
      await writer.abort()
      throw error
    }
    return writer
  }

  /** The payload of one tensor, in pieces of any size. */
  async write(key: string, chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<void> {
    const place = this.#places.get(key)
    if (!place || place.written) throw this.#error(`${key} ${place ? 'was already written' : 'is not in the header'}`)
    place.written = true
    let done = 0
    for await (const chunk of chunks) {
      throwIfAborted(this.#signal)
      if (done + chunk.length > place.bytes) throw this.#error(`${key} got more than its ${place.bytes} bytes`)
      await this.#file.writeAt(chunk, place.begin + done)
      done += chunk.length
    }
    if (done !== place.bytes) throw this.#error(`${key} got ${done} of ${place.bytes} bytes`)
  }

  async finish(): Promise<{ bytes: number }> {
    const missing = [...this.#places].find(([, { written }]) => !written)
    if (missing) throw this.#error(`${missing[0]} was not written`)
    throwIfAborted(this.#signal)
    await this.#file.commit()
    this.#finished = true
    return { bytes: this.#end }
  }

  /** Removes what was written; does nothing after `finish`. */
  async abort(): Promise<void> {
    if (!this.#finished) await this.#file.discard()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.abort()
  }

  #error(message: string): Qwen3Nvfp4Error {
    return new Qwen3Nvfp4Error('INTERNAL', `${this.#file.path}: ${message}`, { file: this.#file.path })
  }
}

function layOut(tensors: readonly SafetensorsPlan[], metadata: Record<string, string> | undefined) {
  const rows = tensors.map(({ key, dtype, shape }) => {
    const { tag, bytes: elementBytes } = findTag(dtype)!
    return { key, tag, shape, elementBytes, bytes: payloadBytes(shape, elementBytes)! }
  })
  rows.sort((a, b) => b.elementBytes - a.elementBytes)
  const json: Record<string, unknown> = Object.create(null)
  if (metadata) json['__metadata__'] = metadata
  const places = new Map<string, Place>()
  let position = 0
  for (const { key, tag, shape, bytes } of rows) {
    places.set(key, { begin: position, bytes, written: false })
    json[key] = { dtype: tag, shape, data_offsets: [position, (position += bytes)] }
  }
  const text = new TextEncoder().encode(JSON.stringify(json))
  const header = new Uint8Array(8 + Math.ceil(text.length / 8) * 8).fill(0x20)
  new DataView(header.buffer).setBigUint64(0, BigInt(header.length - 8), true)
  header.set(text, 8)
  for (const place of places.values()) place.begin += header.length
  return { header, places, end: position + header.length }
}
