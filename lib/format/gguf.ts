import type { ByteSource, ByteSourceInput, GgufValue, TensorEntry } from '../../types/format'
import { checkOptions, checkSignal } from '../check'
import { openByteSource } from './byte-source'
import { readGgufHeader, type GgufHeader } from './gguf-header'
import { TensorReader } from './tensor-reader'

/**
 * Reads a GGUF file: metadata and index are checked before anything else is read; payloads are read on request, as they
 * are in the file.
 *
 * @example
 * await using reader = await GgufReader.open('model.gguf')
 * console.log(reader.metadata.get('general.architecture'), reader.entries.length)
 */
export class GgufReader extends TensorReader<TensorEntry> {
  readonly version: number
  /** Payloads begin at multiples of this. */
  readonly alignment: number
  /** Every value by its key, in file order. */
  readonly metadata: ReadonlyMap<string, GgufValue>

  private constructor(source: ByteSource, { version, alignment, metadata, entries }: GgufHeader) {
    super(source, entries, {
      truncated: 'GGUF_TRUNCATED',
      noSuchKey: 'GGUF_NO_SUCH_KEY',
      tooLarge: 'GGUF_TENSOR_TOO_LARGE',
    })
    this.version = version
    this.alignment = alignment
    this.metadata = metadata
  }

  static async open(input: ByteSourceInput, options?: { signal?: AbortSignal }): Promise<GgufReader> {
    const signal = checkSignal(checkOptions(options).signal)
    const source = await openByteSource(input)
    try {
      return new GgufReader(source, await readGgufHeader(source, signal))
    } catch (error) {
      await source.close()
      throw error
    }
  }
}
