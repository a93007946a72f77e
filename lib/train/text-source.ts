/** Sets of running text: documents one behind the other, cut into windows. */
import type { TrainingTokenizer } from '../../types/training'
import { Qwen3Nvfp4Error } from '../errors'
import type { Pacer } from './pacer'
import { Int32Pages } from './sample-store'
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
import { checkUnchanged, scanLines, textLines, type FileState } from './text-lines'
import { pieceLength } from './text-pieces'

/** Tokens that are made at least whenever more are asked for, as the file is opened anew each time. */
const fillTokens = 32_768

export interface TextSettings {
  tokenizer: TrainingTokenizer
  separator: string | undefined
  endTokenId: number
}

interface TextFile {
  file: string
  state: FileState
  hash: string
}

/** The ids of all documents, each with its end token behind it, made as far as they were asked for. */
class TextTokens {
  readonly #files: readonly TextFile[]
  readonly #settings: TextSettings
  readonly #ids = new Int32Pages()
  /** The file and line to go on at. */
  #file = 0
  #next = { number: 1, offset: 0 }
  /** Text of the document that is not tokenised yet. */
  #pending = ''
  /** Whether the document has a line yet, or ids of one. */
  #begun = false
  #lastFill: Promise<void> = Promise.resolve()

  constructor(files: readonly TextFile[], settings: TextSettings) {
    this.#files = files
    this.#settings = settings
  }

  get length(): number {
    return this.#ids.length
  }

  slice(begin: number, end: number): Int32Array {
    return this.#ids.slice(begin, end)
  }

  /** Makes ids until there are so many, or all. One run at a time does. */
  async ensure(tokens: number, pacer: Pacer): Promise<void> {
    while (this.#ids.length < tokens && this.#file < this.#files.length) {
      const wanted = Math.max(tokens, this.#ids.length + fillTokens)
      const fill = this.#lastFill.then(() => this.#fill(wanted, pacer))
      // The failure or the end of one run is nothing to the next.
      this.#lastFill = fill.catch(() => {})
      await fill
    }
  }

  async #fill(tokens: number, pacer: Pacer): Promise<void> {
    while (this.#ids.length < tokens && this.#file < this.#files.length) {
      const { file, state } = this.#files[this.#file]!
      await checkUnchanged(file, state)
      for await (const { number, nextOffset, bytes } of textLines(file, pacer, this.#next)) {
        const text = bytes.toString('utf8')
        // A run may be aborted wherever it awaits: what was taken in and where to go on change together.
        const next = { number: number + 1, offset: nextOffset }
        if (text === this.#settings.separator) {
          await this.#endDocument(pacer)
          this.#next = next
        } else {
          this.#next = next
          this.#pending += this.#begun ? `\n${text}` : text
          this.#begun ||= text !== ''
          await this.#tokenize(pacer, false)
        }
        if (this.#ids.length >= tokens) return
      }
      await this.#endDocument(pacer)
      this.#file++
      this.#next = { number: 1, offset: 0 }
    }
  }

  /** All pending text, or so much of it that what remains may still be joined by what follows. */
  async #tokenize(pacer: Pacer, all: boolean): Promise<void> {
    for (;;) {
      const length = pieceLength(this.#pending)
      if (length === this.#pending.length && (!all || length === 0)) return
      this.#ids.append(this.#settings.tokenizer.encode(this.#pending.slice(0, length)))
      this.#pending = this.#pending.slice(length)
      const pause = pacer.pause()
      if (pause) await pause
    }
  }

  async #endDocument(pacer: Pacer): Promise<void> {
    if (!this.#begun) return
    await this.#tokenize(pacer, true)
    this.#ids.append(Int32Array.of(this.#settings.endTokenId))
    this.#begun = false
  }
}

/**
 * Windows of maxTokens ids. Each begins with the last id of the one before it, which has no loss there, so that every id
 * but the very first is predicted once an epoch.
 */
class TextWindows implements IndexedSamples {
  readonly #tokens: TextTokens
  readonly #maxTokens: number
  readonly #pacer: Pacer
  readonly #name: string

  constructor(tokens: TextTokens, { maxTokens, pacer }: RunSettings, name: string) {
    this.#tokens = tokens
    this.#maxTokens = maxTokens
    this.#pacer = pacer
    this.#name = name
  }

  async count(): Promise<number> {
    await this.#tokens.ensure(Infinity, this.#pacer)
    return Math.ceil((this.#tokens.length - 1) / (this.#maxTokens - 1))
  }

  async read(index: number): Promise<LocatedSample | undefined> {
    const begin = index * (this.#maxTokens - 1)
    await this.#tokens.ensure(begin + this.#maxTokens, this.#pacer)
    const end = Math.min(begin + this.#maxTokens, this.#tokens.length)
    if (end - begin < 2) return undefined
    const ids = this.#tokens.slice(begin, end)
    return { ids, labels: ids.slice(), origin: { where: `${this.#name}, tokens ${begin} to ${end - 1}` } }
  }
}

export class TextSource implements SampleSource {
  readonly fingerprint: string
  readonly sampleCount = undefined
  readonly isStream = false
  readonly #tokens: TextTokens
  readonly #name: string

  private constructor(files: readonly TextFile[], settings: TextSettings) {
    this.#tokens = new TextTokens(files, settings)
    this.#name = files.length === 1 ? files[0]!.file : `${files[0]!.file} and ${files.length - 1} more`
    const { tokenizer, separator, endTokenId } = settings
    this.fingerprint = hashOf({
      format: { kind: 'text', separator, endTokenId },
      files: files.map(({ hash }) => hash),
      tokenizer: tokenizerPrint(tokenizer),
    })
  }

  static async read(files: readonly string[], settings: TextSettings, pacer: Pacer): Promise<TextSource> {
    const found: TextFile[] = []
    for (const file of files) {
      let isEmpty = true
      const { hash, state } = await scanLines(file, pacer, ({ bytes }) => {
        isEmpty &&= bytes.length === 0 || bytes.toString('utf8') === settings.separator
      })
      if (isEmpty) throw new Qwen3Nvfp4Error('TRAINING_DATA_EMPTY', `${file} has no text`, { file })
      found.push({ file, state, hash })
    }
    return new TextSource(found, settings)
  }

  open(settings: RunSettings): SampleRun {
    return new IndexedRun(new TextWindows(this.#tokens, settings, this.#name), settings)
  }
}
