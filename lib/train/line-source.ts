/** Sets of conversations that stand in files, one a line: `prompt<TAB>answer`, or chat messages as JSON. */
import { open, type FileHandle } from 'node:fs/promises'
import type { ChatMessage } from '../../types/chat'
import type { AnswerOptions, TrainingSample, TrainingTokenizer } from '../../types/training'
import { describe, wrongShape, wrongType } from '../check'
import { Qwen3Nvfp4Error, ioError } from '../errors'
import { answerSampleSteps, checkConversation } from './answer-sample'
import { runPaced, type Pacer } from './pacer'
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
import { checkUnchanged, lineError, scanLines, type FileState } from './text-lines'

/** What a line holds. */
export interface LineContent {
  messages: readonly ChatMessage[]
  tools?: AnswerOptions['tools']
}

/** Reads a line, or throws a TypeError or RangeError that says what is wrong; undefined for one that is no sample. */
export type LineParser = (text: string) => LineContent | undefined

/** Lines of `prompt<TAB>answer`; empty ones and those that begin with `#` are no samples. */
export function tsvParser(systemPrompt: string | undefined): LineParser {
  const system: ChatMessage[] = systemPrompt === undefined ? [] : [{ role: 'system', content: systemPrompt }]
  return (text) => {
    if (text.startsWith('#') || text.trim() === '') return undefined
    const fields = text.split('\t')
    if (fields.length !== 2)
      throw wrongShape('a prompt, one tab and an answer', 'the line', `${fields.length - 1} tabs`)
    const [prompt = '', answer = ''] = fields
    if (prompt.trim() === '') throw wrongShape('a prompt', 'the text before the tab', 'none')
    if (answer.trim() === '') throw wrongShape('an answer', 'the text behind the tab', 'none')
    return { messages: [...system, { role: 'user', content: prompt }, { role: 'assistant', content: answer }] }
  }
}

/** Lines of `{"messages": [{"role", "content"}, …]}`, with `tools` where a conversation has its own; empty ones are none. */
export const chatParser: LineParser = (text) => {
  if (text.trim() === '') return undefined
  const value = JSON.parse(text) as { messages?: unknown; tools?: unknown } | null
  if (typeof value !== 'object' || Array.isArray(value)) throw wrongType('an object', 'the line', value)
  const tools = value?.tools ?? undefined
  if (tools !== undefined && !Array.isArray(tools)) throw wrongType('an array', 'tools', tools)
  return { messages: checkConversation(value?.messages), ...(tools && { tools }) }
}

/** A file whose samples were found: three numbers for each. */
interface IndexedFile {
  file: string
  state: FileState
  hash: string
  offsets: number[]
  byteLengths: number[]
  lineNumbers: number[]
}

function parseLine(parse: LineParser, file: string, line: number, text: string): LineContent | undefined {
  try {
    return parse(text)
  } catch (cause) {
    throw lineError(file, line, (cause as Error).message, text, cause)
  }
}

async function indexFile(file: string, parse: LineParser, pacer: Pacer): Promise<IndexedFile> {
  const [offsets, byteLengths, lineNumbers]: [number[], number[], number[]] = [[], [], []]
  const { hash, state } = await scanLines(file, pacer, ({ number, offset, bytes }) => {
    if (parseLine(parse, file, number, bytes.toString('utf8')) === undefined) return
    offsets.push(offset)
    byteLengths.push(bytes.length)
    lineNumbers.push(number)
  })
  if (offsets.length === 0) {
    throw new Qwen3Nvfp4Error('TRAINING_DATA_EMPTY', `${file} has no line with a sample`, { file })
  }
  return { file, state, hash, offsets, byteLengths, lineNumbers }
}

export interface LineSourceSettings {
  tokenizer: TrainingTokenizer
  answers: AnswerOptions
  parse: LineParser
  /** What of the parser's own settings decides samples. */
  format: unknown
  cacheBytes: number
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
    for (const file of files) indexed.push(await indexFile(file, settings.parse, pacer))
    return new LineSource(indexed, settings)
  }

  open(settings: RunSettings): SampleRun {
    return new IndexedRun(new LineReader(this.#files, this.#settings, this.#store, settings.pacer), settings)
  }
}

/** Where the line of a sample stands. */
interface LinePlace {
  indexed: IndexedFile
  file: string
  line: number
  offset: number
  byteLength: number
}

/** Reads samples from the cache, or from their lines. */
class LineReader implements IndexedSamples {
  readonly #files: readonly IndexedFile[]
  readonly #settings: LineSourceSettings
  readonly #store: SampleStore
  readonly #pacer: Pacer
  readonly #handles = new Map<string, FileHandle>()

  constructor(files: readonly IndexedFile[], settings: LineSourceSettings, store: SampleStore, pacer: Pacer) {
    this.#files = files
    this.#settings = settings
    this.#store = store
    this.#pacer = pacer
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
    return { ...sample, origin, content: async () => describe(await this.#text(place)) }
  }

  async close(): Promise<void> {
    for (const handle of this.#handles.values()) await handle.close()
    this.#handles.clear()
  }

  /** The line of a sample. */
  #place(index: number): LinePlace | undefined {
    for (const indexed of this.#files) {
      const { file, offsets, byteLengths, lineNumbers } = indexed
      if (index < offsets.length) {
        return { indexed, file, line: lineNumbers[index]!, offset: offsets[index]!, byteLength: byteLengths[index]! }
      }
      index -= offsets.length
    }
    return undefined
  }

  async #handle({ file, state }: IndexedFile): Promise<FileHandle> {
    let handle = this.#handles.get(file)
    if (!handle) {
      await checkUnchanged(file, state)
      handle = await open(file, 'r').catch((cause: unknown) => {
        throw ioError('read', file, cause)
      })
      this.#handles.set(file, handle)
    }
    return handle
  }

  async #text({ indexed, file, offset, byteLength }: LinePlace): Promise<string> {
    const handle = await this.#handle(indexed)
    const bytes = Buffer.allocUnsafe(byteLength)
    const { bytesRead } = await handle.read(bytes, 0, byteLength, offset).catch((cause: unknown) => {
      throw ioError('read', file, cause)
    })
    return bytes.toString('utf8', 0, bytesRead)
  }

  async #tokenize(place: LinePlace): Promise<TrainingSample> {
    const { parse, tokenizer, answers } = this.#settings
    const { file, line } = place
    const text = await this.#text(place)
    const content = parseLine(parse, file, line, text)
    if (!content) {
      throw new Qwen3Nvfp4Error('TRAINING_DATA_CHANGED', `${file}, line ${line}: no sample any more`, { file, line })
    }
    const { messages, tools = answers.tools } = content
    try {
      return await runPaced(answerSampleSteps(tokenizer, messages, { ...answers, tools }), this.#pacer)
    } catch (cause) {
      if (cause instanceof TypeError || cause instanceof RangeError) {
        throw lineError(file, line, cause.message, text, cause)
      }
      if (!(cause instanceof Qwen3Nvfp4Error)) throw cause
      const message = `${file}, line ${line}: ${cause.message}: ${describe(text)}`
      throw new Qwen3Nvfp4Error(cause.code, message, { cause, file, line })
    }
  }
}
