/** Where converted tensors go: one `.dat` or GGUF, or the safetensors files of a directory. */
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { DatWriter } from '../format/dat-writer'
import { GgufWriter, type GgufWrittenValue } from '../format/gguf-writer'
import { SafetensorsWriter } from '../format/safetensors-writer'
import type { PlannedPart, PlannedTensor } from './plan'

/** A file that was written, and the CRC-32 of each payload as it was meant. */
export interface WrittenFile {
  path: string
  parts: PlannedPart[]
  digests: Map<string, number>
}

export interface TensorSink extends AsyncDisposable {
  readonly files: readonly WrittenFile[]
  /** Tensors in the order of the plan, and the parts of each in theirs. */
  write(part: PlannedPart, chunks: Chunks): Promise<void>
  finish(): Promise<void>
}

type Chunks = AsyncIterable<Uint8Array> | Iterable<Uint8Array>

/** What ends a file that is written part by part. */
interface PartWriter {
  finish(): Promise<unknown>
  abort(): Promise<void>
}

/** One file with every part in it. */
export class FileSink implements TensorSink {
  readonly files: readonly WrittenFile[]
  readonly #writer: PartWriter
  readonly #write: (part: PlannedPart, chunks: Chunks) => Promise<void>

  private constructor(
    file: Pick<WrittenFile, 'path' | 'parts'>,
    writer: PartWriter,
    write: (part: PlannedPart, chunks: Chunks) => Promise<void>,
  ) {
    this.files = [{ ...file, digests: new Map() }]
    this.#writer = writer
    this.#write = write
  }

  static async dat(path: string, tensors: readonly PlannedTensor[], signal: AbortSignal | undefined) {
    const parts = tensors.flatMap((tensor) => tensor.parts)
    const writer = await DatWriter.create(path, { entries: parts.length, signal })
    return new FileSink({ path, parts }, writer, ({ key, dtype, shape }, chunks) =>
      writer.write(key, dtype, shape, chunks),
    )
  }

  static async gguf(
    path: string,
    metadata: ReadonlyMap<string, GgufWrittenValue>,
    tensors: readonly PlannedTensor[],
    signal: AbortSignal | undefined,
  ) {
    const parts = tensors.flatMap((tensor) => tensor.parts)
    const writer = await GgufWriter.create(path, metadata, parts, signal)
    return new FileSink({ path, parts }, writer, ({ key }, chunks) => writer.write(key, chunks))
  }

  async write(part: PlannedPart, chunks: Chunks): Promise<void> {
    await this.#write(part, digested(chunks, this.files[0]!, part.key))
  }

  async finish(): Promise<void> {
    await this.#writer.finish()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#writer.abort()
  }
}

/** Shards of at most `shardBytes`, or of one parameter; each is closed when its last tensor is written. */
export class ShardSink implements TensorSink {
  readonly files: readonly WrittenFile[]
  readonly #signal: AbortSignal | undefined
  readonly #fileOf: ReadonlyMap<string, WrittenFile>
  #open: { file: WrittenFile; writer: SafetensorsWriter } | undefined

  constructor(folder: string, tensors: readonly PlannedTensor[], shardBytes: number, signal: AbortSignal | undefined) {
    const shards = shardsOf(tensors, shardBytes)
    this.files = shards.map((parts, i) => {
      return { path: join(folder, shardName(i, shards.length)), parts, digests: new Map<string, number>() }
    })
    this.#fileOf = new Map(this.files.flatMap((file) => file.parts.map(({ key }) => [key, file] as const)))
    this.#signal = signal
  }

  async write({ key }: PlannedPart, chunks: Chunks): Promise<void> {
    const file = this.#fileOf.get(key)!
    if (this.#open?.file !== file) {
      await this.finish()
      const options = { metadata: { format: 'pt' }, signal: this.#signal }
      this.#open = { file, writer: await SafetensorsWriter.create(file.path, file.parts, options) }
    }
    await this.#open.writer.write(key, digested(chunks, file, key))
  }

  async finish(): Promise<void> {
    await this.#open?.writer.finish()
    this.#open = undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#open?.writer.abort()
  }
}

function shardsOf(tensors: readonly PlannedTensor[], shardBytes: number): PlannedPart[][] {
  const shards: PlannedPart[][] = []
  let left = 0
  for (const { parts } of tensors) {
    const bytes = parts.reduce((sum, part) => sum + part.bytes, 0)
    if (shards.length === 0 || bytes > left) {
      shards.push([])
      left = shardBytes
    }
    shards.at(-1)!.push(...parts)
    left -= bytes
  }
  return shards
}

/** As Hugging Face names them. */
function shardName(i: number, count: number): string {
  const number = (value: number) => String(value).padStart(5, '0')
  return count === 1 ? 'model.safetensors' : `model-${number(i + 1)}-of-${number(count)}.safetensors`
}

async function* digested(chunks: Chunks, file: WrittenFile, key: string): AsyncGenerator<Uint8Array> {
  let digest = 0
  for await (const chunk of chunks) {
    digest = crc32(chunk, digest)
    yield chunk
  }
  file.digests.set(key, digest)
}
