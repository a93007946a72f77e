/** Sets of conversations that stand in files, one a line. */
import { describe } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { lineParser } from './line-formats'
import { LineTokenizer, type LinePlace, type LineTokenizerSettings } from './line-tokenizer'
import type { Pacer } from './pacer'
import { SampleStore } from './sample-store'
import {
  IndexedRun,
  hashOf,
  tokenizerPrint,
  type IndexedSamples,
  type LocatedSample,
  type RunSettings,
  type SampleRun,
  type SampleSource,
} from './sample-source'
import { scanLines, type FileState } from './text-lines'
import { TokenizerThreads } from './tokenizer-threads'

/** A file whose samples were found: three numbers for each. */
interface IndexedFile {
  file: string
  state: FileState
  hash: string
  offsets: number[]
  byteLengths: number[]
  lineNumbers: number[]
}

async function indexFile(file: string, parse: ReturnType<typeof lineParser>, pacer: Pacer): Promise<IndexedFile> {
  const [offsets, byteLengths, lineNumbers]: [number[], number[], number[]] = [[], [], []]
  const { hash, state } = await scanLines(file, pacer, ({ number, offset, bytes }) => {
    if (parse(file, number, bytes.toString('utf8')) === undefined) return
    offsets.push(offset)
    byteLengths.push(bytes.length)
    lineNumbers.push(number)
  })
  if (offsets.length === 0) {
    throw new Qwen3Nvfp4Error('TRAINING_DATA_EMPTY', `${file} has no line with a sample`, { file })
  }
  return { file, state, hash, offsets, byteLengths, lineNumbers }
}

export interface LineSourceSettings extends LineTokenizerSettings {
  cacheBytes: number
  /** Threads that tokenise; 0: that of the event loop does. */
  workers: number
}

/** The lines of files: where they are is found once, and each is read and tokenised when its turn comes. */
export class LineSource implements SampleSource {
  readonly fingerprint: string
  readonly sampleCount: number
  readonly isStream = false
  readonly #files: readonly IndexedFile[]
  readonly #settings: LineSourceSettings
  readonly #store: SampleStore

  private constructor(files: readonly IndexedFile[], settings: LineSourceSettings) {
    this.#files = files
    this.#settings = settings
    this.sampleCount = files.reduce((sum, { offsets }) => sum + offsets.length, 0)
    this.#store = new SampleStore(this.sampleCount, settings.cacheBytes)
    const { tokenizer, answers, format } = settings
    this.fingerprint = hashOf({
      format,
      answers,
      files: files.map(({ hash }) => hash),
      tokenizer: tokenizerPrint(tokenizer),
    })
  }

  static async read(files: readonly string[], settings: LineSourceSettings, pacer: Pacer): Promise<LineSource> {
    const indexed: IndexedFile[] = []
    const parse = lineParser(settings.format)
    for (const file of files) indexed.push(await indexFile(file, parse, pacer))
    return new LineSource(indexed, settings)
  }

  open(settings: RunSettings): SampleRun {
    return new IndexedRun(new LineReader(this.#files, this.#settings, this.#store, settings.pacer), settings)
  }
}

/** Reads samples from the cache, or from their lines. */
class LineReader implements IndexedSamples {
  readonly readAhead: number
  readonly #files: readonly IndexedFile[]
  readonly #settings: LineSourceSettings
  readonly #store: SampleStore
  readonly #lines: LineTokenizer
  #threads: TokenizerThreads | undefined

  constructor(files: readonly IndexedFile[], settings: LineSourceSettings, store: SampleStore, pacer: Pacer) {
    this.#files = files
    this.#settings = settings
    this.#store = store
    this.#lines = new LineTokenizer(settings, pacer)
    this.readAhead = TokenizerThreads.readAhead(settings.workers)
  }

  count(): number {
    return this.#files.reduce((sum, { offsets }) => sum + offsets.length, 0)
  }

  async read(index: number): Promise<LocatedSample | undefined> {
    const place = this.#place(index)
    if (!place) return undefined
    let sample = this.#store.get(index)
    if (!sample) this.#store.set(index, (sample = await this.#tokenize(place)))
    const { file, line } = place
    const origin = { where: `${file}, line ${line}`, file, line }
    return { ...sample, origin, content: async () => describe(await this.#lines.text(place)) }
  }

  async close(): Promise<void> {
    await this.#lines.close()
    await this.#threads?.close()
  }

  /** The line of a sample. */
  #place(index: number): LinePlace | undefined {
    for (const { file, state, offsets, byteLengths, lineNumbers } of this.#files) {
      if (index < offsets.length) {
        return { file, state, line: lineNumbers[index]!, offset: offsets[index]!, byteLength: byteLengths[index]! }
      }
      index -= offsets.length
    }
    return undefined
  }

  #tokenize(place: LinePlace) {
    if (this.#settings.workers === 0) return this.#lines.read(place)
    this.#threads ??= startThreads(this.#settings)
    return this.#threads.read(place)
  }
}

function startThreads({ workers, tokenizer, answers, format }: LineSourceSettings): TokenizerThreads {
  const tokenizerHash = hashOf(tokenizerPrint(tokenizer))
  return new TokenizerThreads(workers, { tokenizerPath: tokenizer.path!, tokenizerHash, answers, format })
}
