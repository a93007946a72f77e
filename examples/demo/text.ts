/** From text files to batches of token ids. */
import { readFile } from 'node:fs/promises'
import { answerSample, type Tokenizer } from 'qwen3-nvfp4'
import { makeByteTokenizer, type ByteTokenizer } from '../support/make-byte-tokenizer'
import type { RunSettings } from './settings'

export interface Pair {
  prompt: string
  answer: string
}

export interface DemoText {
  corpus: string
  chat: Pair[]
  /** The new identity, and old answers to prompts that resemble its own. */
  tune: Pair[]
}

const read = (name: string) => readFile(new URL(`../data/${name}`, import.meta.url), 'utf8')

/** Lines of `prompt<TAB>answer`; those that begin with `# ` are comments. */
function parsePairs(text: string): Pair[] {
  const lines = text.split('\n').filter((line) => line !== '' && !line.startsWith('# '))
  return lines.map((line) => line.split('\t')).map(([prompt, answer]) => ({ prompt: prompt!, answer: answer! }))
}

export async function readText(): Promise<DemoText> {
  const [corpus, chat, tune] = await Promise.all(['corpus.txt', 'chat.tsv', 'identity.tsv'].map(read))
  return { corpus: corpus!, chat: parsePairs(chat!), tune: parsePairs(tune!) }
}

/** A byte-level BPE tokenizer of this text, the names of the roles included. */
export function learnTokenizer({ corpus, chat, tune }: DemoText, vocabSize: number): ByteTokenizer {
  const turns = [...chat, ...tune].map(({ prompt, answer }) => `user\n${prompt}\nassistant\n${answer}\n`)
  return makeByteTokenizer([corpus, ...turns].join('\n'), vocabSize)
}

/** The same numbers from 0 to 1 for the same seed (a 32-bit mix of a counter, after Steele et al., 2014). */
export function randomSource(seed: number): () => number {
  let counter = seed >>> 0
  return () => {
    let x = (counter = (counter + 0x9e3779b9) >>> 0)
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
    return ((x ^ (x >>> 16)) >>> 0) / 2 ** 32
  }
}

export const pick = <T>(random: () => number, items: readonly T[]): T => items[Math.floor(random() * items.length)]!

/** What `trainStep` takes: rows of equal length. */
export interface Batch {
  ids: number[][]
  labels: number[][]
}

interface Row {
  ids: number[]
  labels: number[]
}

/** The label that has no loss. */
const ignored = -100

/** One turn, of which the answer has labels, and the line break that the chat template puts in front of the next. */
function turnRow(tokenizer: Tokenizer, { prompt, answer }: Pair): Row {
  const { ids, labels } = answerSample(tokenizer, [
    { role: 'user', content: prompt },
    { role: 'assistant', content: answer },
  ])
  const lineBreak = [...tokenizer.encode('\n')]
  return { ids: [...ids, ...lineBreak], labels: [...labels, ...lineBreak.map(() => ignored)] }
}

/** Draws batches of running text and of conversations. */
export class Batches {
  readonly #tokenizer: Tokenizer
  readonly #corpus: number[]
  readonly #random: () => number
  readonly #turns = new Map<Pair, Row>()

  constructor(tokenizer: Tokenizer, corpus: string, random: () => number) {
    this.#tokenizer = tokenizer
    this.#corpus = [...tokenizer.encode(corpus)]
    this.#random = random
  }

  next({ textRows, chatRows, tokens }: RunSettings, nextPair: () => Pair): Batch {
    const rows = [
      ...Array.from({ length: textRows }, () => this.#window(tokens)),
      ...Array.from({ length: chatRows }, () => this.#conversation(tokens, nextPair)),
    ]
    return { ids: rows.map(({ ids }) => ids), labels: rows.map(({ labels }) => labels) }
  }

  #window(tokens: number): Row {
    const begin = Math.floor(this.#random() * (this.#corpus.length - tokens))
    const ids = this.#corpus.slice(begin, begin + tokens)
    return { ids, labels: ids }
  }

  /** Turns until the next one does not fit, so that an answer is learned as the first one and as a later one. */
  #conversation(tokens: number, nextPair: () => Pair): Row {
    const row: Row = { ids: [], labels: [] }
    for (let turn = this.#turn(nextPair()); ; turn = this.#turn(nextPair())) {
      if (turn.ids.length > tokens) throw new Error(`a turn of ${turn.ids.length} tokens; make sequences as long`)
      if (row.ids.length + turn.ids.length > tokens) break
      row.ids.push(...turn.ids)
      row.labels.push(...turn.labels)
    }
    while (row.ids.length < tokens) {
      row.ids.push(this.#tokenizer.padTokenId!)
      row.labels.push(ignored)
    }
    return row
  }

  #turn(pair: Pair): Row {
    const known = this.#turns.get(pair) ?? turnRow(this.#tokenizer, pair)
    this.#turns.set(pair, known)
    return known
  }
}
