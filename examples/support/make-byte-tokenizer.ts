/**
 * Makes a small byte-level BPE tokenizer from text: tokenizer.json and tokenizer_config.json as Hugging Face writes them.
 *
 *   tsx examples/support/make-byte-tokenizer.ts <folder> <vocabulary size> <text file>...
 *
 * Ids: 0 to 255 are the bytes, 256 to 258 the special tokens, the rest the merges in the order in which they were learned.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

const specialTokens = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']

/** Words with the space in front of them, single digits, runs of other signs, single white space: no merge crosses these. */
const pieces = ' ?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s'

/** ChatML turns, as Qwen3 renders those without tools. */
const chatTemplate = `{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {{- message.content }}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
`

export interface ByteTokenizer {
  tokenizerJson: object
  tokenizerConfig: object
  /** What was reached: fewer than asked when the text has no pair left that occurs twice. */
  vocabSize: number
}

/** The printable stand-in of every byte in GPT-2's byte-level alphabet. */
function byteAlphabet(): string[] {
  const isPrintable = (byte: number) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad)
  let next = 0x100
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : next++))
}

/** A different piece of the text: its present tokens and how often it occurs. */
interface Word {
  ids: number[]
  count: number
}

function countWords(text: string): Word[] {
  const counts = new Map<string, number>()
  for (const [piece] of text.matchAll(new RegExp(pieces, 'gu'))) counts.set(piece, (counts.get(piece) ?? 0) + 1)
  return [...counts].map(([piece, count]) => ({ ids: [...Buffer.from(piece)], count }))
}

// A pair of ids as one number, so that maps need no strings; the vocabulary is far below 2^20.
const pairOf = (left: number, right: number) => left * 2 ** 20 + right

/** How often every pair of neighbours occurs, and in which words, so that a merge looks only at those. */
class PairCounts {
  readonly #pairs = new Map<number, { count: number; words: Set<Word> }>()

  /** Counts the pairs of a word; with `times` -1, takes them back. */
  add(word: Word, times: 1 | -1 = 1): void {
    for (let i = 1; i < word.ids.length; i++) {
      const pair = pairOf(word.ids[i - 1]!, word.ids[i]!)
      const entry = this.#pairs.get(pair) ?? { count: 0, words: new Set<Word>() }
      entry.count += times * word.count
      entry.words.add(word)
      if (entry.count > 0) this.#pairs.set(pair, entry)
      else this.#pairs.delete(pair)
    }
  }

  /** The words that have had this pair; some may have lost it to other merges. */
  wordsWith(pair: number): Word[] {
    return [...(this.#pairs.get(pair)?.words ?? [])]
  }

  /** The pair that occurs most, the one of the lowest ids among equals; undefined when none occurs twice. */
  mostFrequent(): number | undefined {
    let best: number | undefined
    let most = 1
    for (const [pair, { count }] of this.#pairs) {
      if (count > most || (count === most && best !== undefined && pair < best)) {
        best = pair
        most = count
      }
    }
    return best
  }
}

function mergeIn(word: Word, left: number, right: number, merged: number): void {
  const { ids } = word
  let kept = 0
  for (let i = 0; i < ids.length; i++) {
    const isPair = ids[i] === left && ids[i + 1] === right
    ids[kept++] = isPair ? merged : ids[i]!
    if (isPair) i++
  }
  ids.length = kept
}

/** Byte pair encoding: again and again, the most frequent pair of neighbours becomes a token (Sennrich et al., 2016). */
function learnMerges(text: string, count: number, firstId: number): [number, number][] {
  const pairs = new PairCounts()
  for (const word of countWords(text)) pairs.add(word)
  const merges: [number, number][] = []
  while (merges.length < count) {
    const pair = pairs.mostFrequent()
    if (pair === undefined) break
    const left = Math.floor(pair / 2 ** 20)
    const right = pair % 2 ** 20
    for (const word of pairs.wordsWith(pair)) {
      pairs.add(word, -1)
      mergeIn(word, left, right, firstId + merges.length)
      pairs.add(word)
    }
    merges.push([left, right])
  }
  return merges
}

/** The same text and size give the same tokenizer, byte for byte. */
export function makeByteTokenizer(text: string, vocabSize: number): ByteTokenizer {
  const tokens = [...byteAlphabet(), ...specialTokens]
  if (!Number.isInteger(vocabSize) || vocabSize < tokens.length) {
    throw new RangeError(`Expected an integer of at least ${tokens.length} for vocabSize but received ${vocabSize}`)
  }
  const merges = learnMerges(text, vocabSize - tokens.length, tokens.length).map(([left, right]) => {
    const parts = [tokens[left]!, tokens[right]!]
    tokens.push(parts.join(''))
    return parts
  })
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false }
  const split = { type: 'Split', pattern: { Regex: pieces }, behavior: 'Isolated', invert: false }
  const plain = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }
  const tokenizerJson = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specialTokens.map((content, i) => ({ id: 256 + i, content, ...plain })),
    normalizer: null,
    pre_tokenizer: { type: 'Sequence', pretokenizers: [split, byteLevel] },
    post_processor: byteLevel,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  }
  const tokenizerConfig = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    bos_token: null,
    eos_token: '<|im_end|>',
    pad_token: '<|endoftext|>',
    unk_token: null,
    clean_up_tokenization_spaces: false,
    chat_template: chatTemplate,
  }
  return { tokenizerJson, tokenizerConfig, vocabSize: tokens.length }
}

/** Writes both files into `folder`, which is made where it is missing. */
export async function writeByteTokenizer(folder: string, tokenizer: ByteTokenizer): Promise<void> {
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'tokenizer.json'), `${JSON.stringify(tokenizer.tokenizerJson, null, 1)}\n`)
  await writeFile(join(folder, 'tokenizer_config.json'), `${JSON.stringify(tokenizer.tokenizerConfig, null, 1)}\n`)
}

async function main([folder, vocabSize, ...files]: string[]): Promise<void> {
  if (!folder || !vocabSize || files.length === 0) {
    throw new Error('usage: make-byte-tokenizer.ts <folder> <vocabulary size> <text file>...')
  }
  const texts = await Promise.all(files.map((file) => readFile(file, 'utf8')))
  const tokenizer = makeByteTokenizer(texts.join('\n'), Number(vocabSize))
  await writeByteTokenizer(folder, tokenizer)
  console.log(`${folder}: ${tokenizer.vocabSize} tokens`)
}

if (process.argv[1]?.endsWith('make-byte-tokenizer.ts')) {
  main(process.argv.slice(2)).catch((error: Error) => {
    console.error(error.message)
    process.exitCode = 1
  })
}
