import type { DTypeName } from '../../types/format'
import { Qwen3Nvfp4Error, throwIfAborted } from '../errors'
import { AtomicFile } from './atomic-file'
import { findGgmlType, ggmlBytes, ggufIds } from './gguf-types'

/** A value with the type that readers of the format expect of its key. */
export type GgufWrittenValue =
  | { type: 'uint32' | 'float32'; value: number }
  | { type: 'bool'; value: boolean }
  | { type: 'string'; value: string }
  | { type: 'strings'; value: readonly string[] }
  | { type: 'int32s'; value: Int32Array }

export interface GgufPlan {
  key: string
  dtype: DTypeName
  /** Outermost first, in elements. */
  shape: readonly number[]
}

const alignment = 32
const aligned = (position: number) => Math.ceil(position / alignment) * alignment

/**
 * Writes a GGUF (version 3, little-endian) whose tensors are known beforehand and come in that order. The file appears
 * under its name when `finish` resolves; else nothing stays.
 */
export class GgufWriter implements AsyncDisposable {
  readonly #file: AtomicFile
  readonly #left: { key: string; bytes: number }[]
  readonly #signal: AbortSignal | undefined
  #finished = false

  private constructor(file: AtomicFile, tensors: { key: string; bytes: number }[], signal: AbortSignal | undefined) {
    this.#file = file
    this.#left = tensors
    this.#signal = signal
  }

  /** The dtypes are those of GGUF, rows are whole blocks, and the keys differ. */
  static async create(
    path: string,
    metadata: ReadonlyMap<string, GgufWrittenValue>,
    tensors: readonly GgufPlan[],
    signal?: AbortSignal,
  ): Promise<GgufWriter> {
    throwIfAborted(signal)
    const sizes = tensors.map(({ key, dtype, shape }) => ({ key, bytes: ggmlBytes(shape, findGgmlType(dtype)!)! }))
    const writer = new GgufWriter(await AtomicFile.create(path), sizes, signal)
    try {
      for (const bytes of headerOf(metadata, tensors, sizes)) await writer.#file.write(bytes)
      await writer.#pad()
    } catch (error) {
      await writer.abort()
      throw error
    }
    return writer
  }

  /** The payload of the next tensor, in pieces of any size. */
  async write(key: string, chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<void> {
    const next = this.#left.shift()
    if (next?.key !== key) throw this.#error(`${key} came where ${next?.key ?? 'nothing'} was expected`)
    const end = this.#file.position + next.bytes
    for await (const chunk of chunks) {
      throwIfAborted(this.#signal)
      await this.#file.write(chunk)
    }
    if (this.#file.position !== end) {
      throw this.#error(`${key} got ${next.bytes + this.#file.position - end} of ${next.bytes} bytes`)
    }
    await this.#pad()
  }

  async finish(): Promise<{ bytes: number }> {
    if (this.#left[0]) throw this.#error(`${this.#left[0].key} was not written`)
    throwIfAborted(this.#signal)
    await this.#file.commit()
    this.#finished = true
    return { bytes: this.#file.position }
  }

  /** Removes what was written; does nothing after `finish`. */
  async abort(): Promise<void> {
    if (!this.#finished) await this.#file.discard()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.abort()
  }

  async #pad(): Promise<void> {
    const { position } = this.#file
    await this.#file.write(new Uint8Array(aligned(position) - position))
  }

  #error(message: string): Qwen3Nvfp4Error {
    return new Qwen3Nvfp4Error('INTERNAL', `${this.#file.path}: ${message}`, { file: this.#file.path })
  }
}

/** In pieces: a vocabulary is a few megabytes of small strings. */
function* headerOf(
  metadata: ReadonlyMap<string, GgufWrittenValue>,
  tensors: readonly GgufPlan[],
  sizes: readonly { bytes: number }[],
): Generator<Uint8Array> {
  yield Buffer.concat([Buffer.from('GGUF'), uint32(3), uint64(tensors.length), uint64(metadata.size)])
  for (const [key, value] of metadata) {
    yield string(key)
    yield* valueOf(value)
  }
  let offset = 0
  for (const [i, { key, dtype, shape }] of tensors.entries()) {
    const dims = [...shape].reverse().map(uint64)
    const type = uint32(findGgmlType(dtype)!.id)
    yield Buffer.concat([string(key), uint32(shape.length), ...dims, type, uint64(offset)])
    offset = aligned(offset + sizes[i]!.bytes)
  }
}

function* valueOf(value: GgufWrittenValue): Generator<Uint8Array> {
  switch (value.type) {
    case 'uint32':
      yield Buffer.concat([uint32(ggufIds.uint32), uint32(value.value)])
      break
    case 'float32':
      yield Buffer.concat([uint32(ggufIds.float32), Buffer.from(Float32Array.of(value.value).buffer)])
      break
    case 'bool':
      yield Buffer.concat([uint32(ggufIds.bool), Buffer.of(value.value ? 1 : 0)])
      break
    case 'string':
      yield Buffer.concat([uint32(ggufIds.string), string(value.value)])
      break
    case 'strings':
      yield Buffer.concat([uint32(ggufIds.array), uint32(ggufIds.string), uint64(value.value.length)])
      for (const each of value.value) yield string(each)
      break
    case 'int32s':
      yield Buffer.concat([uint32(ggufIds.array), uint32(ggufIds.int32), uint64(value.value.length)])
      yield new Uint8Array(value.value.buffer, value.value.byteOffset, value.value.byteLength)
  }
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}

function uint64(value: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  return bytes
}

function string(text: string): Buffer {
  const bytes = Buffer.from(text)
  return Buffer.concat([uint64(bytes.length), bytes])
}
