import { open, type FileHandle } from 'node:fs/promises'
import type { AnswerOptions, TrainingSample, TrainingTokenizer } from '../../types/training'
import { describe } from '../check'
import { Qwen3Nvfp4Error, ioError } from '../errors'
import { answerSampleSteps } from './answer-sample'
import { lineParser, type LineFormat } from './line-formats'
import { runPaced, type Pacer } from './pacer'
import { checkUnchanged, lineError, type FileState } from './text-lines'

/** Where the line of a sample stands. */
export interface LinePlace {
  file: string
  /** What the file was when its lines were found. */
  state: FileState
  line: number
  offset: number
  byteLength: number
}

export interface LineTokenizerSettings {
  tokenizer: TrainingTokenizer
  answers: AnswerOptions
  format: LineFormat
}

/** Makes samples of lines: in the thread of the event loop, or in one of its own (TokenizerThreads). */
export class LineTokenizer {
  readonly #settings: LineTokenizerSettings
  readonly #parse: ReturnType<typeof lineParser>
  readonly #pacer: Pacer
  readonly #handles = new Map<string, Promise<FileHandle>>()

  constructor(settings: LineTokenizerSettings, pacer: Pacer) {
    this.#settings = settings
    this.#parse = lineParser(settings.format)
    this.#pacer = pacer
  }

  async read(place: LinePlace): Promise<TrainingSample> {
    const { tokenizer, answers } = this.#settings
    const { file, line } = place
    const text = await this.text(place)
    const content = this.#parse(file, line, text)
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

  async text({ file, state, offset, byteLength }: LinePlace): Promise<string> {
    let opening = this.#handles.get(file)
    if (!opening) this.#handles.set(file, (opening = openUnchanged(file, state)))
    const handle = await opening
    const bytes = Buffer.allocUnsafe(byteLength)
    const { bytesRead } = await handle.read(bytes, 0, byteLength, offset).catch((cause: unknown) => {
      throw ioError('read', file, cause)
    })
    return bytes.toString('utf8', 0, bytesRead)
  }

  /** Files that could not be opened are none of its concern. */
  async close(): Promise<void> {
    const opened = await Promise.allSettled(this.#handles.values())
    this.#handles.clear()
    for (const opening of opened) if (opening.status === 'fulfilled') await opening.value.close()
  }
}

async function openUnchanged(file: string, state: FileState): Promise<FileHandle> {
  await checkUnchanged(file, state)
  return open(file, 'r').catch((cause: unknown) => {
    throw ioError('read', file, cause)
  })
}
