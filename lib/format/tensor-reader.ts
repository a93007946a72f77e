import { constants } from 'node:buffer'
import type { ByteSource, LongOperationOptions, TensorData, TensorEntry } from '../../types/format'
import { checkFunction, checkInteger, checkOptions, checkSignal } from '../check'
import { Qwen3Nvfp4Error, throwIfAborted, type ErrorCode } from '../errors'
import { readFully } from './byte-source'
import { typedArrayOf } from './element-types'

export interface StreamOptions extends LongOperationOptions {
  /** Bytes of a chunk, 1 to 64 MiB; default 1 MiB. The last one is shorter. */
  chunkBytes?: number
}

/** The codes that a reader of one format throws. */
export interface ReaderCodes {
  truncated: ErrorCode
  noSuchKey: ErrorCode
  tooLarge: ErrorCode
}

/** An open file of named tensors: its index is in memory, payloads are read on request. */
export class TensorReader<Entry extends TensorEntry> implements AsyncDisposable {
  /** Every entry, in file order. */
  readonly entries: readonly Entry[]
  /** The path, or the name of the source. */
  readonly file: string
  /** Bytes of the whole file. */
  readonly size: number
  readonly #source: ByteSource
  readonly #codes: ReaderCodes
  readonly #byKey: Map<string, Entry>
  #closed = false

  /** @internal Use the format's `open`. */
  protected constructor(source: ByteSource, entries: readonly Entry[], codes: ReaderCodes) {
    this.#source = source
    this.#codes = codes
    this.#byKey = new Map(entries.map((entry) => [entry.key, entry]))
    this.entries = entries
    this.file = source.name
    this.size = source.size
  }

  has(key: string): boolean {
    return this.#byKey.has(key)
  }

  /** The entry of `key`; an error with the file's name when there is none. */
  entry(key: string): Entry {
    const entry = this.#byKey.get(key)
    if (!entry) throw this.#error(this.#codes.noSuchKey, `has no entry ${JSON.stringify(key)}`, key)
    return entry
  }

  /** A whole payload as a typed array (half-width floats as raw bits, one-byte types as bytes). */
  async read(key: string, options?: LongOperationOptions): Promise<TensorData> {
    return typedArrayOf(this.entry(key).dtype, (await this.readBytes(key, options)).buffer)
  }

  /** A whole payload as it is in the file. */
  async readBytes(key: string, options?: LongOperationOptions): Promise<Uint8Array<ArrayBuffer>> {
    const entry = this.entry(key)
    if (entry.bytes > constants.MAX_LENGTH) {
      const message = `entry ${JSON.stringify(key)} has ${entry.bytes} bytes, more than one array holds; use stream()`
      throw this.#error(this.#codes.tooLarge, message, key)
    }
    const bytes = new Uint8Array(entry.bytes)
    let done = 0
    for await (const chunk of this.#chunks(entry, 4 << 20, checkLongOptions(options), (length) =>
      bytes.subarray(done, done + length),
    )) {
      done += chunk.length
    }
    return bytes
  }

  /** A payload in chunks, each in its own memory. */
  stream(key: string, options?: StreamOptions): AsyncIterable<Uint8Array> {
    const checked = checkLongOptions(options)
    const chunkBytes = checkInteger('chunkBytes', options?.chunkBytes ?? 1 << 20, 1, 64 << 20)
    return this.#chunks(this.entry(key), chunkBytes, checked, (length) => new Uint8Array(length))
  }

  /** @internal Fills `target` from byte `begin` of a payload on. */
  async readInto(key: string, begin: number, target: Uint8Array): Promise<void> {
    await this.#fill(this.entry(key), begin, target, undefined)
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await this.#source.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async *#chunks(
    entry: Entry,
    chunkBytes: number,
    { signal, onProgress }: LongOperationOptions,
    allocate: (length: number) => Uint8Array,
  ): AsyncGenerator<Uint8Array> {
    this.#poll(signal)
    for (let done = 0; done < entry.bytes;) {
      const chunk = allocate(Math.min(chunkBytes, entry.bytes - done))
      await this.#fill(entry, done, chunk, signal)
      done += chunk.length
      onProgress?.({ doneBytes: done, totalBytes: entry.bytes })
      yield chunk
    }
  }

  async #fill(entry: Entry, begin: number, target: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    const position = entry.offset + begin
    const onShort = (got: number) => {
      const message = `became shorter while it was read: it ends at byte ${position + got}`
      return this.#error(this.#codes.truncated, message, entry.key, position + got)
    }
    await readFully(this.#source, target, position, onShort, () => this.#poll(signal))
  }

  #poll(signal: AbortSignal | undefined): void {
    throwIfAborted(signal)
    if (this.#closed) throw new Qwen3Nvfp4Error('DISPOSED', `the reader of ${this.file} is closed`, { file: this.file })
  }

  #error(code: ErrorCode, message: string, key: string, offset?: number): Qwen3Nvfp4Error {
    return new Qwen3Nvfp4Error(code, `${this.file} ${message}`, { file: this.file, key, offset })
  }
}

export function checkLongOptions(options: LongOperationOptions | undefined): LongOperationOptions {
  const { signal, onProgress } = checkOptions(options)
  checkSignal(signal)
  checkFunction('onProgress', onProgress)
  return { signal, onProgress }
}
