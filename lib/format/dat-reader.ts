import type { ByteSource, ByteSourceInput, DatEntry, DTypeName } from '../../types/format'
import { checkInteger, checkOptions, checkSignal } from '../check'
import { openByteSource } from './byte-source'
import { defaultMaxEntries, readDatIndex } from './dat-index'
import { TensorReader } from './tensor-reader'

export interface DatOpenOptions {
  signal?: AbortSignal
  /** Refuses a file that announces more entries (DAT_TOO_MANY_ENTRIES); default 1,048,576. Bounds the index's memory. */
  maxEntries?: number
}

export interface DatSummary {
  file: string
  bytes: number
  entries: number
  /** Bytes of all payloads; the rest are headers. */
  payloadBytes: number
  dtypes: { dtype: DTypeName; elementType: number; entries: number; bytes: number }[]
}

/**
 * Reads a TorchSharp `.dat` state dict: `open` walks the headers only, payloads are read on request.
 *
 * @example
 * await using reader = await DatReader.open('model.dat')
 * for (const { key, dtype, shape } of reader.entries) console.log(key, dtype, shape)
 * const norm = await reader.read('model.norm.weight')
 */
export class DatReader extends TensorReader<DatEntry> {
  private constructor(source: ByteSource, entries: readonly DatEntry[]) {
    const codes = { truncated: 'DAT_TRUNCATED', noSuchKey: 'DAT_NO_SUCH_KEY', tooLarge: 'DAT_ENTRY_TOO_LARGE' } as const
    super(source, entries, codes)
  }

  static async open(input: ByteSourceInput, options?: DatOpenOptions): Promise<DatReader> {
    const { signal, maxEntries = defaultMaxEntries } = checkOptions(options)
    checkSignal(signal)
    checkInteger('maxEntries', maxEntries, 0)
    const source = await openByteSource(input)
    try {
      return new DatReader(source, await readDatIndex(source, { signal, maxEntries }))
    } catch (error) {
      await source.close()
      throw error
    }
  }

  /** Counts and bytes by element type. */
  summary(): DatSummary {
    const dtypes = new Map<number, DatSummary['dtypes'][number]>()
    let payloadBytes = 0
    for (const { elementType, dtype, bytes } of this.entries) {
      const row = dtypes.get(elementType) ?? { dtype, elementType, entries: 0, bytes: 0 }
      row.entries++
      row.bytes += bytes
      payloadBytes += bytes
      dtypes.set(elementType, row)
    }
    const rows = [...dtypes.values()].sort((a, b) => a.elementType - b.elementType)
    return { file: this.file, bytes: this.size, entries: this.entries.length, payloadBytes, dtypes: rows }
  }
}
