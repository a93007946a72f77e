import { types } from 'node:util'
import type { DTypeName } from '../../types/format'
import {
  checkInteger,
  checkOptions,
  checkPath,
  checkShape,
  checkSignal,
  checkString,
  wrongType,
  wrongValue,
} from '../check'
import { Qwen3Nvfp4Error, throwIfAborted } from '../errors'
import { AtomicFile } from './atomic-file'
import { datError, maxDims, maxKeyBytes } from './dat-index'
import { findElementType, payloadBytes, type ElementType } from './element-types'
import { encodeVarint } from './leb128'

/** Bytes of one tensor, at once or in pieces of any size. */
export type DatPayload = ArrayBufferView | AsyncIterable<Uint8Array> | Iterable<Uint8Array>

export interface DatWriterOptions {
  /** How many entries will be written: the number stands first in the file. */
  entries: number
  /** Ends the writer at its next chunk: the call rejects with the signal's reason, and nothing stays. */
  signal?: AbortSignal
}

/**
 * Writes a TorchSharp `.dat` state dict as a stream. The file appears under its name when `finish` resolves; after any
 * failure, or without `finish`, nothing stays.
 *
 * @example
 * await using writer = await DatWriter.create('out.dat', { entries: 1 })
 * await writer.write('bias', 'float32', [2], Float32Array.of(1, 2))
 * await writer.finish()
 */
export class DatWriter implements AsyncDisposable {
  readonly #file: AtomicFile
  readonly #name: string
  readonly #entries: number
  readonly #signal: AbortSignal | undefined
  readonly #keys = new Set<string>()
  #state: 'open' | 'busy' | 'finished' | 'aborted' = 'open'

  private constructor(file: AtomicFile, name: string, entries: number, signal: AbortSignal | undefined) {
    this.#file = file
    this.#name = name
    this.#entries = entries
    this.#signal = signal
  }

  static async create(path: string | URL, options: DatWriterOptions): Promise<DatWriter> {
    const name = checkPath('path', path)
    const { entries, signal } = checkOptions(options)
    checkInteger('entries', entries, 0)
    checkSignal(signal)
    throwIfAborted(signal)
    const writer = new DatWriter(await AtomicFile.create(name), name, entries, signal)
    await writer.#guarded(() => writer.#file.write(encodeVarint(entries)))
    return writer
  }

  /** Bytes written so far. */
  get position(): number {
    return this.#file.position
  }

  /** Appends one entry; `elementType` is an id (0-15, 100, 101) or a name such as 'bfloat16'. */
  async write(
    key: string,
    elementType: number | DTypeName,
    shape: readonly number[],
    payload: DatPayload,
  ): Promise<void> {
    const type = checkElementType(elementType)
    const header = encodeHeader(checkKey(key), type, checkDims(shape))
    const bytes = payloadBytes(shape, type.bytes)
    if (bytes === undefined) throw wrongValue('a tensor of less than 2^53 bytes', 'shape', `[${shape.join(', ')}]`)
    const chunks = toChunks(payload)
    await this.#guarded(async () => {
      if (this.#keys.has(key)) throw datError('DAT_DUPLICATE_KEY', this.#name, 'the key was already written', { key })
      if (this.#keys.size === this.#entries) {
        throw datError('DAT_ENTRY_COUNT', this.#name, `entry ${this.#entries + 1} of ${this.#entries}`, { key })
      }
      this.#keys.add(key)
      await this.#file.write(header)
      await this.#writePayload(key, bytes, chunks)
    })
  }

  /** Checks that all entries came, flushes to the disk and renames the file to its name. */
  async finish(): Promise<{ bytes: number }> {
    await this.#guarded(async () => {
      if (this.#keys.size !== this.#entries) {
        const message = `${this.#keys.size} entries were written, ${this.#entries} were announced`
        throw datError('DAT_ENTRY_COUNT', this.#name, message)
      }
      await this.#file.commit()
    })
    this.#state = 'finished'
    return { bytes: this.#file.position }
  }

  /** Removes what was written; does nothing after `finish`. */
  async abort(): Promise<void> {
    if (this.#state === 'finished' || this.#state === 'aborted') return
    this.#state = 'aborted'
    await this.#file.discard()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.abort()
  }

  async #writePayload(
    key: string,
    bytes: number,
    chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  ): Promise<void> {
    let done = 0
    for await (const chunk of chunks) {
      if (!types.isUint8Array(chunk)) throw wrongType('Uint8Array chunks', 'payload', chunk)
      done += chunk.length
      if (done > bytes) break
      throwIfAborted(this.#signal)
      if (this.#state === 'aborted') throw this.#closedError()
      await this.#file.write(chunk)
    }
    if (done !== bytes) {
      const received = done > bytes ? `at least ${done}` : `${done}`
      throw datError('DAT_PAYLOAD_SIZE', this.#name, `the shape needs ${bytes} bytes but ${received} came`, { key })
    }
  }

  /** One operation at a time; the first failure ends the writer and removes the file. */
  async #guarded(work: () => Promise<void>): Promise<void> {
    if (this.#state === 'busy') {
      throw new Qwen3Nvfp4Error('BUSY', `the writer of ${this.#name} is in the middle of another call; await it first`)
    }
    if (this.#state !== 'open') throw this.#closedError()
    this.#state = 'busy'
    try {
      throwIfAborted(this.#signal)
      await work()
      if ((this.#state as string) === 'aborted') throw this.#closedError()
      this.#state = 'open'
    } catch (error) {
      const wasAborted = (this.#state as string) === 'aborted'
      this.#state = 'aborted'
      await this.#file.discard()
      throw wasAborted ? this.#closedError() : error
    }
  }

  #closedError(): Qwen3Nvfp4Error {
    const what = this.#state === 'finished' ? 'finished' : 'aborted'
    return new Qwen3Nvfp4Error('DISPOSED', `the writer of ${this.#name} is ${what}`, { file: this.#name })
  }
}

export function checkElementType(elementType: unknown, name = 'elementType'): ElementType {
  if (typeof elementType !== 'number' && typeof elementType !== 'string') {
    throw wrongType('an element type id or name', name, elementType)
  }
  const type = findElementType(elementType)
  if (!type) throw wrongValue('an element type of .dat (0-15, 100, 101 or a name)', name, elementType)
  return type
}

function checkKey(key: unknown): Uint8Array {
  const text = checkString('key', key)
  if (/\p{Surrogate}/u.test(text)) throw wrongValue('text without lone surrogates', 'key', key)
  const bytes = new TextEncoder().encode(text)
  if (bytes.length > maxKeyBytes) throw wrongValue(`at most ${maxKeyBytes} bytes of UTF-8`, 'key', key)
  return bytes
}

function checkDims(shape: readonly number[]): number[] {
  const dims = checkShape('shape', shape)
  if (dims.length > maxDims) throw wrongValue(`at most ${maxDims} dimensions`, 'shape', shape)
  return dims
}

/** The key's length counts bytes. (exportsd.py counts characters, so its files with non-ASCII keys cannot be read.) */
function encodeHeader(key: Uint8Array, type: ElementType, shape: readonly number[]): Uint8Array {
  const numbers = [type.id, shape.length, ...shape].map(encodeVarint)
  return Buffer.concat([encodeVarint(key.length), key, ...numbers])
}

function toChunks(payload: DatPayload): AsyncIterable<Uint8Array> | Iterable<Uint8Array> {
  if (ArrayBuffer.isView(payload)) return [new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength)]
  if (typeof payload === 'object' && payload !== null) {
    if (Symbol.asyncIterator in payload || Symbol.iterator in payload) return payload
  }
  throw wrongType('a typed array or an (async) iterable of Uint8Array', 'payload', payload)
}
