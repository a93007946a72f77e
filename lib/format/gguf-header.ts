/** The part of a GGUF before its payloads: counts, metadata, and the index of tensors. */
import { isUtf8 } from 'node:buffer'
import type { ByteSource, GgufValue, TensorEntry } from '../../types/format'
import { Qwen3Nvfp4Error, throwIfAborted, type ErrorCode, type ErrorDetails } from '../errors'
import { readFully } from './byte-source'
import { ByteWindow } from './byte-window'
import { findGgmlType, ggmlBytes, ggufIds, ggufNumbers } from './gguf-types'

/** Limits of this reader: real names are under 100 bytes, and ggml has at most 4 dimensions. */
const maxNameBytes = 65535
const maxDims = 4
/** Smallest metadata entry (length, one byte of name, type, one byte) and smallest tensor: these bound hostile counts. */
const minValueBytes = 8 + 1 + 4 + 1
const minTensorBytes = 8 + 1 + 4 + 4 + 8
const defaultAlignment = 32

export interface GgufHeader {
  version: number
  /** Payloads begin at multiples of this. */
  alignment: number
  metadata: Map<string, GgufValue>
  /** In the order of their payloads. */
  entries: TensorEntry[]
}

export async function readGgufHeader(source: ByteSource, signal?: AbortSignal): Promise<GgufHeader> {
  throwIfAborted(signal)
  return new HeaderReader(source, signal).read()
}

class HeaderReader {
  readonly #window: ByteWindow
  readonly #file: string
  readonly #signal: AbortSignal | undefined

  constructor(source: ByteSource, signal: AbortSignal | undefined) {
    this.#window = new ByteWindow(source, (message, offset) => this.#error('GGUF_TRUNCATED', message, { offset }))
    this.#file = source.name
    this.#signal = signal
  }

  async read(): Promise<GgufHeader> {
    const version = await this.#readVersion()
    const tensors = await this.#readCount('tensors', minTensorBytes)
    const values = await this.#readCount('metadata values', minValueBytes)
    const metadata = new Map<string, GgufValue>()
    while (metadata.size < values) {
      throwIfAborted(this.#signal)
      const offset = this.#window.position
      const key = await this.#readName('a metadata key')
      if (metadata.has(key)) throw this.#error('GGUF_DUPLICATE_KEY', 'the key occurs twice', { key, offset })
      metadata.set(key, await this.#readValue(await this.#uint32('the type of a value'), key))
    }
    const alignment = this.#alignmentOf(metadata)
    const entries = new Map<string, TensorEntry>()
    while (entries.size < tensors) {
      throwIfAborted(this.#signal)
      const entry = await this.#readTensor(alignment)
      if (entries.has(entry.key)) {
        throw this.#error('GGUF_DUPLICATE_KEY', 'the tensor occurs twice', { key: entry.key })
      }
      entries.set(entry.key, entry)
    }
    return { version, alignment, metadata, entries: this.#place([...entries.values()], alignment) }
  }

  async #readVersion(): Promise<number> {
    const head = await this.#window.take(8, 'its first 8 bytes')
    if (head.toString('latin1', 0, 4) !== 'GGUF') {
      throw this.#error('GGUF_BAD_HEADER', 'does not begin with GGUF', { offset: 0 })
    }
    const version = head.readUInt32LE(4)
    if (version === 2 || version === 3) return version
    const what = head.readUInt32BE(4) <= 3 ? 'is big-endian' : `has version ${version}`
    throw this.#error('GGUF_BAD_HEADER', `${what}; versions 2 and 3 in little-endian order are read`, { offset: 4 })
  }

  async #readCount(what: string, leastBytes: number): Promise<number> {
    const offset = this.#window.position
    const count = (await this.#window.take(8, `the number of ${what}`)).readBigUInt64LE()
    if (count * BigInt(leastBytes) > BigInt(this.#window.left)) {
      throw this.#error('GGUF_TRUNCATED', `the file is too short for the ${count} ${what} that it announces`, {
        offset,
      })
    }
    return Number(count)
  }

  async #uint32(what: string): Promise<number> {
    return (await this.#window.take(4, what)).readUInt32LE()
  }

  async #readName(what: string): Promise<string> {
    const offset = this.#window.position
    const name = await this.#readString(what)
    if (name === '' || name.length > maxNameBytes) {
      const message = `${what} has ${name.length} characters; 1 to ${maxNameBytes} are allowed`
      throw this.#error('GGUF_BAD_METADATA', message, { offset })
    }
    return name
  }

  async #readString(what: string, key?: string): Promise<string> {
    const offset = this.#window.position
    const head = await this.#window.take(8, `the length of ${what}`)
    const length = head.readUInt32LE(4) * 2 ** 32 + head.readUInt32LE(0)
    if (length > this.#window.left) {
      const message = `${what} has ${length} bytes, more than the ${this.#window.left} that are left`
      throw this.#error('GGUF_TRUNCATED', message, { key, offset })
    }
    const bytes = await this.#window.take(length, what)
    if (!isUtf8(bytes)) throw this.#error('GGUF_BAD_METADATA', `${what} is not UTF-8`, { key, offset })
    return bytes.toString()
  }

  /** A string that the window holds and that is right: a vocabulary has 300,000, and awaiting each is slow. */
  #stringNow(): string | undefined {
    const { position } = this.#window
    const head = this.#window.takeNow(8)
    const isShort = head?.readUInt32LE(4) === 0
    const bytes = isShort ? this.#window.takeNow(head.readUInt32LE(0)) : undefined
    if (bytes && isUtf8(bytes)) return bytes.toString()
    this.#window.position = position
    return undefined
  }

  async #readValue(type: number, key: string): Promise<GgufValue> {
    const offset = this.#window.position
    if (type === ggufIds.string) return this.#readString('a string', key)
    if (type === ggufIds.array) return this.#readArray(key)
    if (type === ggufIds.bool) {
      const value = (await this.#window.take(1, 'a value'))[0]!
      if (value > 1) throw this.#error('GGUF_BAD_METADATA', `a bool of ${value}`, { key, offset })
      return value === 1
    }
    const number = this.#numberType(type, key)
    const bytes = await this.#window.take(number.bytes, 'a value')
    const value = number.read(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), 0)
    return typeof value === 'bigint' && BigInt.asIntN(54, value) === value ? Number(value) : value
  }

  async #readArray(key: string): Promise<GgufValue> {
    const offset = this.#window.position
    const head = await this.#window.take(12, 'the head of an array')
    const type = head.readUInt32LE(0)
    const count = head.readBigUInt64LE(4)
    if (type === ggufIds.array) {
      throw this.#error('GGUF_BAD_METADATA', 'arrays of arrays are not supported', { key, offset })
    }
    // A string has its length at least.
    const number = type === ggufIds.string ? undefined : this.#numberType(type === ggufIds.bool ? 0 : type, key)
    if (count * BigInt(number?.bytes ?? 8) > BigInt(this.#window.left)) {
      const message = `an array of ${count} elements does not fit into the ${this.#window.left} bytes that are left`
      throw this.#error('GGUF_TRUNCATED', message, { key, offset })
    }
    if (number) return this.#readNumbers(number.array, Number(count) * number.bytes)
    const strings: string[] = []
    for (let i = 0; i < Number(count); i++) {
      strings.push(this.#stringNow() ?? (await this.#readString(`string ${i} of an array`, key)))
    }
    return strings
  }

  async #readNumbers<T>(array: new (buffer: ArrayBuffer) => T, length: number): Promise<T> {
    const { source, position, onTruncated } = this.#window
    const bytes = new Uint8Array(length)
    await readFully(source, bytes, position, (got) => onTruncated('the file became shorter', position + got))
    this.#window.position += length
    return new array(bytes.buffer)
  }

  #numberType(type: number, key: string) {
    const number = Object.hasOwn(ggufNumbers, type) ? ggufNumbers[type] : undefined
    if (number) return number
    throw this.#error('GGUF_BAD_METADATA', `a value of the unknown type ${type}`, {
      key,
      offset: this.#window.position,
    })
  }

  #alignmentOf(metadata: ReadonlyMap<string, GgufValue>): number {
    const key = 'general.alignment'
    const alignment = metadata.get(key) ?? defaultAlignment
    const isPower = typeof alignment === 'number' && Number.isInteger(Math.log2(alignment)) && alignment >= 1
    if (isPower && alignment <= 2 ** 30) return alignment
    throw this.#error('GGUF_BAD_METADATA', `an alignment of ${String(alignment)}, which is no power of two`, { key })
  }

  async #readTensor(alignment: number): Promise<TensorEntry> {
    const start = this.#window.position
    const key = await this.#readName('the name of a tensor')
    const ndim = await this.#uint32('the number of dimensions')
    if (ndim > maxDims) {
      throw this.#error('GGUF_BAD_TENSOR', `${ndim} dimensions; at most ${maxDims} are allowed`, { key, offset: start })
    }
    const tail = await this.#window.take(ndim * 8 + 12, 'the description of a tensor')
    // Innermost first in the file.
    const shape = Array.from({ length: ndim }, (_, i) => Number(tail.readBigUInt64LE(i * 8))).reverse()
    const id = tail.readUInt32LE(ndim * 8)
    const type = findGgmlType(id)
    if (!type) throw this.#error('GGUF_BAD_TENSOR', `the unknown type ${id}`, { key, offset: start })
    const bytes = ggmlBytes(shape, type)
    if (bytes === undefined || bytes === 0) {
      const message = `shape [${shape.join(', ')}] of ${type.dtype} is empty, larger than 2^53 bytes, or no whole blocks`
      throw this.#error('GGUF_BAD_TENSOR', message, { key, offset: start })
    }
    const offset = tail.readBigUInt64LE(ndim * 8 + 4)
    if (offset % BigInt(alignment) !== 0n) {
      throw this.#error('GGUF_BAD_OFFSETS', `offset ${offset} is no multiple of ${alignment}`, { key, offset: start })
    }
    return { key, dtype: type.dtype, shape, offset: Number(offset), bytes }
  }

  /** Offsets from the start of the file, of payloads that follow each other with nothing but padding between them. */
  #place(entries: TensorEntry[], alignment: number): TensorEntry[] {
    const aligned = (position: number) => Math.ceil(position / alignment) * alignment
    const start = aligned(this.#window.position)
    const { size } = this.#window.source
    entries.sort((a, b) => a.offset - b.offset)
    let position = start
    for (const entry of entries) {
      const { key } = entry
      entry.offset += start
      if (entry.offset !== position) {
        const message = `begins at byte ${entry.offset}, ${entry.offset < position ? 'inside its neighbour, which ends' : 'past the end of its neighbour'} at ${position}`
        throw this.#error('GGUF_BAD_OFFSETS', message, { key, offset: entry.offset })
      }
      if (entry.bytes > size - entry.offset) {
        const message = `the file ends at byte ${size}, the payload at ${entry.offset + entry.bytes}`
        throw this.#error('GGUF_TRUNCATED', message, { key, offset: entry.offset })
      }
      position = aligned(entry.offset + entry.bytes)
    }
    return entries
  }

  #error(code: ErrorCode, message: string, details: ErrorDetails): Qwen3Nvfp4Error {
    const key = details.key === undefined ? '' : ` ${JSON.stringify(details.key.slice(0, 200))}`
    return new Qwen3Nvfp4Error(code, `${this.#file}${key}: ${message}`, { ...details, file: this.#file })
  }
}
