/**
 * Qwen3's tokenizer as a GGUF has it (tokenizer.ggml.*) and as Hugging Face's files have it. A GGUF names the kind of
 * model (gpt2: byte-level BPE) and how text is split before it (qwen2); everything else is in its lists.
 */
import { types as valueTypes } from 'node:util'
import type { GgufValue } from '../../types/format'
import { describe } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import type { GgufWrittenValue } from '../format/gguf-writer'
import { templateSource } from './chat-template'
import type { TokenizerFiles } from './tokenizer-files'

/** llama.cpp's token types. User-defined tokens are found in text like control tokens, but are part of it. */
const tokenTypes = { normal: 1, control: 3, userDefined: 4, unused: 5 } as const

/** How `qwen2` splits text: the pattern of Qwen2's and Qwen3's tokenizer.json. */
const qwen2Split =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

const key = (name: string) => `tokenizer.ggml.${name}`

/** What tokenizer.json and tokenizer_config.json would hold. */
export function tokenizerOfGguf(metadata: ReadonlyMap<string, GgufValue>, file: string): TokenizerFiles {
  const expect = (name: string, value: string) => {
    if (metadata.get(key(name)) !== value) throw invalid(file, `"${value}"`, key(name), metadata.get(key(name)))
  }
  expect('model', 'gpt2')
  expect('pre', 'qwen2')
  const tokens = metadata.get(key('tokens'))
  const merges = metadata.get(key('merges')) ?? []
  const types = metadata.get(key('token_type')) ?? new Int32Array(0)
  if (!isStrings(tokens)) throw invalid(file, 'a list of strings', key('tokens'), tokens)
  if (!isStrings(merges)) throw invalid(file, 'a list of strings', key('merges'), merges)
  if (!valueTypes.isInt32Array(types) || (types.length !== 0 && types.length !== tokens.length)) {
    throw invalid(file, `${tokens.length} int32 numbers`, key('token_type'), types)
  }
  const { vocab, added } = splitTokens(tokens, types)
  const text = (name: string) => tokenOf(metadata, name, tokens, file)
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false }
  const split = { type: 'Split', pattern: { Regex: qwen2Split }, behavior: 'Isolated', invert: false }
  return {
    tokenizer: {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: added,
      normalizer: { type: 'NFC' },
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
        vocab,
        merges: merges.map((merge) => pairOf(merge, file)),
      },
    },
    config: {
      tokenizer_class: 'Qwen2Tokenizer',
      add_bos_token: false,
      add_prefix_space: false,
      clean_up_tokenization_spaces: false,
      unk_token: null,
      // Only a model that begins texts with it has one in its tokenizer.
      bos_token: metadata.get(key('add_bos_token')) === true ? text('bos') : null,
      eos_token: text('eos'),
      pad_token: text('padding'),
      ...(typeof metadata.get('tokenizer.chat_template') === 'string' && {
        chat_template: metadata.get('tokenizer.chat_template'),
      }),
    },
  }
}

/** The metadata of a tokenizer; undefined with a reason for one that `qwen2` does not describe. */
export function ggufOfTokenizer(
  { tokenizer, config }: TokenizerFiles,
  vocabSize: number,
): [string, GgufWrittenValue][] | { reason: string } {
  const { added_tokens: added = [], pre_tokenizer: pre, model } = tokenizer as TokenizerJson
  if (model?.type !== 'BPE') return { reason: `its model is ${describe(model?.type)}, not "BPE"` }
  if (!pre?.pretokenizers?.some(({ pattern }) => pattern?.Regex === qwen2Split)) {
    return { reason: 'it splits text in another way than Qwen3' }
  }
  const tokens: string[] = Array.from({ length: vocabSize }, (_, id) => `[PAD${id}]`)
  const types = new Int32Array(vocabSize).fill(tokenTypes.unused)
  const put = (text: string, id: number, type: number) => {
    if (id < vocabSize) [tokens[id], types[id]] = [text, type]
    return id < vocabSize
  }
  const fits = [
    ...Object.entries(model.vocab).map(([text, id]) => put(text, id, tokenTypes.normal)),
    ...added.map(({ content, id, special }) => put(content, id, special ? tokenTypes.control : tokenTypes.userDefined)),
  ]
  if (fits.includes(false)) return { reason: `it has ids past the vocabulary of ${vocabSize}` }
  const { eos_token: eos, pad_token: pad, chat_template: template } = config as TokenizerConfig
  const source = templateSource(template)
  const strings = (value: readonly string[]): GgufWrittenValue => ({ type: 'strings', value })
  return [
    [key('model'), { type: 'string', value: 'gpt2' }],
    [key('pre'), { type: 'string', value: 'qwen2' }],
    [key('tokens'), strings(tokens)],
    [key('token_type'), { type: 'int32s', value: types }],
    [key('merges'), strings(model.merges.map((merge) => (typeof merge === 'string' ? merge : merge.join(' '))))],
    [key('add_bos_token'), { type: 'bool', value: false }],
    ...idOf('eos', eos, tokens),
    ...idOf('padding', pad, tokens),
    ...(source === undefined
      ? []
      : [['tokenizer.chat_template', { type: 'string', value: source }] as [string, GgufWrittenValue]]),
  ]
}

interface TokenizerJson {
  added_tokens?: { id: number; content: string; special: boolean }[]
  pre_tokenizer?: { pretokenizers?: { pattern?: { Regex?: string } }[] } | null
  model?: { type?: string; vocab: Record<string, number>; merges: (string | [string, string])[] }
}

type SpecialToken = string | { content?: string } | null | undefined

interface TokenizerConfig {
  eos_token?: SpecialToken
  pad_token?: SpecialToken
  chat_template?: unknown
}

function idOf(name: string, token: SpecialToken, tokens: readonly string[]): [string, GgufWrittenValue][] {
  const text = typeof token === 'string' ? token : token?.content
  const id = text === undefined ? -1 : tokens.indexOf(text)
  return id < 0 ? [] : [[key(`${name}_token_id`), { type: 'uint32', value: id }]]
}

/** Unused tokens pad a vocabulary to the rows of the embedding; they have no text. */
function splitTokens(tokens: readonly string[], types: Int32Array) {
  const vocab: Record<string, number> = Object.create(null)
  const added: { id: number; content: string; special: boolean }[] = []
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false }
  for (const [id, content] of tokens.entries()) {
    const type = types[id] ?? tokenTypes.normal
    if (type === tokenTypes.unused) continue
    if (type === tokenTypes.control || type === tokenTypes.userDefined) {
      added.push({ id, content, ...flags, special: type === tokenTypes.control })
    } else {
      vocab[content] = id
    }
  }
  return { vocab, added }
}

function pairOf(merge: string, file: string): [string, string] {
  const [left, right, ...others] = merge.split(' ')
  if (left && right && others.length === 0) return [left, right]
  throw invalid(file, 'two tokens with a space between them', key('merges'), merge)
}

function tokenOf(
  metadata: ReadonlyMap<string, GgufValue>,
  name: string,
  tokens: readonly string[],
  file: string,
): string | null {
  const id = metadata.get(key(`${name}_token_id`))
  if (id === undefined) return null
  const token = typeof id === 'number' ? tokens[id] : undefined
  if (token === undefined) throw invalid(file, `an id below ${tokens.length}`, key(`${name}_token_id`), id)
  return token
}

const isStrings = (value: GgufValue | undefined): value is string[] => Array.isArray(value)

function invalid(file: string, expected: string, name: string, actual: unknown): Qwen3Nvfp4Error {
  const received = actual === undefined ? 'nothing' : describe(actual)
  const message = `${file}: Expected ${expected} for ${name} but received ${received}`
  return new Qwen3Nvfp4Error('TOKENIZER_INVALID', message, { file })
}
