import { resolve } from 'node:path'
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers'
import type { ChatMessage, ChatTemplateOptions } from '../../types/chat'
import { checkPath, wrongType, wrongValue } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { byteLevelToBytes } from './byte-level'
import { ChatTemplate, templateSource } from './chat-template'
import { Utf8Stream } from './text-stream'
import { readTokenizerFiles } from './tokenizer-files'

export interface EncodeOptions {
  /** Adds what the tokenizer's post-processor adds around a text (Qwen3: nothing). Default: false. */
  addSpecialTokens?: boolean
  /**
   * Whether added tokens written in the text, such as `<|im_start|>` or `<think>`, become their ids. False treats them as
   * plain text, for text that must not be able to end a turn. Default: true.
   */
  parseSpecial?: boolean
}

export interface DecodeOptions {
  /** Leaves out special tokens such as `<|im_end|>`. Default: false. */
  skipSpecialTokens?: boolean
}

/** The fields of tokenizer.json and tokenizer_config.json that this class reads itself. */
interface TokenizerJson {
  decoder?: { type?: string } | null
  model?: { vocab?: unknown } | null
  added_tokens?: unknown
}
interface TokenizerConfig {
  chat_template?: unknown
  bos_token?: unknown
  eos_token?: unknown
  pad_token?: unknown
}

const nothing = new Uint8Array(0)

/** Ids lie below: vocabularies have hundreds of thousands, and tables are as long as the largest id. */
const maxTokenId = 1 << 24

/** The library takes any number for an id, which would come back as another one in an Int32Array. */
function checkTokenIds({ model, added_tokens: added }: TokenizerJson): void {
  const check = (token: unknown, id: unknown) => {
    if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < maxTokenId) return
    const [name, found] = [String(token).slice(0, 100), typeof id === 'number' ? id : typeof id]
    const message = `the tokenizer's token ${name} has the id ${found}, but ids are integers from 0 to ${maxTokenId - 1}`
    throw new Qwen3Nvfp4Error('TOKENIZER_INVALID', message)
  }
  const vocab = model?.vocab
  if (typeof vocab === 'object' && vocab !== null && !Array.isArray(vocab)) {
    for (const token in vocab) check(token, (vocab as Record<string, unknown>)[token])
  }
  for (const token of Array.isArray(added) ? (added as ({ content?: unknown; id?: unknown } | null)[]) : []) {
    check(token?.content, token?.id)
  }
}

/** A special token of tokenizer_config.json: its text, or an object with it. */
function tokenText(token: unknown): string | undefined {
  if (typeof token === 'string') return token
  const content = (token as { content?: unknown } | null | undefined)?.content
  return typeof content === 'string' ? content : undefined
}

function checkJsonObject(value: unknown, name: string): object {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrongType('an object', name, value)
  return value
}

/** Text to ids and back, by a Hugging Face tokenizer.json of the byte-level kind (Qwen3's). */
export class Tokenizer {
  /** Ids run from 0 to below this; a model's own vocabulary may be padded beyond it. */
  readonly vocabSize: number
  readonly bosTokenId?: number
  readonly eosTokenId?: number
  readonly padTokenId?: number
  /** Ids after which an answer is over: the end-of-sequence token, `<|im_end|>` and `<|endoftext|>`, where they exist. */
  readonly stopTokenIds: readonly number[]
  /** The checkpoint's chat template, if it has one. */
  readonly chatTemplate?: ChatTemplate
  /** Where `fromFile` has read it. */
  readonly path?: string
  readonly #tokenizer: HuggingFaceTokenizer
  readonly #special: ReadonlySet<number>
  readonly #bytes: (Uint8Array | undefined)[] = []
  readonly #added: ReadonlySet<number>

  private constructor(tokenizerJson: object, tokenizerConfig: object, path?: string) {
    if (path !== undefined) this.path = path
    const config = tokenizerConfig as TokenizerConfig
    const decoder = (tokenizerJson as TokenizerJson).decoder?.type
    if (decoder !== 'ByteLevel') {
      throw new Qwen3Nvfp4Error(
        'TOKENIZER_INVALID',
        `the tokenizer's decoder is ${decoder ?? 'missing'}, but only ByteLevel (Qwen3's) is supported`,
      )
    }
    checkTokenIds(tokenizerJson)
    try {
      this.#tokenizer = new HuggingFaceTokenizer(tokenizerJson, tokenizerConfig)
    } catch (cause) {
      throw new Qwen3Nvfp4Error('TOKENIZER_INVALID', `cannot use the tokenizer: ${(cause as Error).message}`, { cause })
    }
    const added = [...this.#tokenizer.get_added_tokens_decoder().values()]
    this.#added = new Set(added.map((token) => token.id))
    this.#special = new Set(added.filter((token) => token.special).map((token) => token.id))
    this.vocabSize = this.#tokenizer.model!.vocab.length
    this.bosTokenId = this.#configuredId(config.bos_token)
    this.eosTokenId = this.#configuredId(config.eos_token)
    this.padTokenId = this.#configuredId(config.pad_token)
    const stops = [this.eosTokenId, this.idOf('<|im_end|>'), this.idOf('<|endoftext|>')]
    this.stopTokenIds = [...new Set(stops.filter((id) => id !== undefined))]
    const source = templateSource(config.chat_template)
    if (source !== undefined) {
      this.chatTemplate = new ChatTemplate(source, {
        bos_token: tokenText(config.bos_token),
        eos_token: tokenText(config.eos_token),
        pad_token: tokenText(config.pad_token),
      })
    }
  }

  /**
   * Reads `path`, a tokenizer.json or a folder with one, and the tokenizer_config.json and chat_template.jinja beside it
   * where they exist (the latter wins over a template in the former); or a `.gguf`, which has a tokenizer in it.
   */
  static async fromFile(path: string | URL): Promise<Tokenizer> {
    const file = resolve(checkPath('path', path))
    const { tokenizer, config } = await readTokenizerFiles(file)
    return new Tokenizer(tokenizer, config, file)
  }

  /** From the parsed contents of tokenizer.json and tokenizer_config.json. */
  static fromJson(tokenizerJson: object, tokenizerConfig: object = {}): Tokenizer {
    return new Tokenizer(
      checkJsonObject(tokenizerJson, 'tokenizerJson'),
      checkJsonObject(tokenizerConfig, 'tokenizerConfig'),
    )
  }

  /** The ids of a text. Text that is not in Unicode normal form C is normalised first, as the checkpoint asks. */
  encode(text: string, { addSpecialTokens = false, parseSpecial = true }: EncodeOptions = {}): Int32Array {
    if (typeof text !== 'string') throw wrongType('a string', 'text', text)
    if (parseSpecial) {
      return Int32Array.from(this.#tokenizer.encode(text, { add_special_tokens: addSpecialTokens }).ids)
    }
    // The library always looks for added tokens, so this runs the steps that come after the search.
    const { normalizer, pre_tokenizer: split, model, post_processor: wrap } = this.#tokenizer
    const normal = normalizer ? (normalizer(text) as string) : text
    const plain = normal === '' ? [] : model!(split ? split(normal, { section_index: 0 }) : [normal])
    const tokens = wrap ? wrap(plain, null, addSpecialTokens).tokens : plain
    return Int32Array.from(tokens, (token) => this.#tokenizer.token_to_id(token)!)
  }

  /** The text of ids; bytes that are not UTF-8 become U+FFFD. Ids without a token (a padded vocabulary's) have no text. */
  decode(ids: ArrayLike<number>, { skipSpecialTokens = false }: DecodeOptions = {}): string {
    if (typeof ids !== 'object' || ids === null || typeof ids.length !== 'number') {
      throw wrongType('an array of ids', 'ids', ids)
    }
    const parts = Array.from(ids, (id) => this.tokenBytes(id, { skipSpecialTokens }))
    const stream = new Utf8Stream()
    return stream.push(Buffer.concat(parts)) + stream.flush()
  }

  /** The bytes that a token contributes to a text. */
  tokenBytes(id: number, { skipSpecialTokens = false }: DecodeOptions = {}): Uint8Array {
    if (!Number.isInteger(id) || id < 0) throw wrongValue('a token id', 'id', id)
    if (skipSpecialTokens && this.#special.has(id)) return nothing
    return (this.#bytes[id] ??= this.#makeBytes(id))
  }

  /** The id of a token as the vocabulary writes it, for example `<|im_end|>`. */
  idOf(token: string): number | undefined {
    return this.#tokenizer.token_to_id(token)
  }

  /** Whether an id is a special token, which ends or marks parts of a text rather than being part of it. */
  isSpecial(id: number): boolean {
    return this.#special.has(id)
  }

  /** The text of a conversation as the checkpoint was trained on it. */
  renderChatTemplate(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    if (!this.chatTemplate) {
      throw new Qwen3Nvfp4Error(
        'CHAT_TEMPLATE_MISSING',
        'the tokenizer has no chat template; put chat_template.jinja beside tokenizer.json or chat_template into tokenizer_config.json',
      )
    }
    return this.chatTemplate.render(messages, options)
  }

  /** The ids of a conversation: `encode` of `renderChatTemplate`. */
  applyChatTemplate(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): Int32Array {
    return this.encode(this.renderChatTemplate(messages, options))
  }

  #configuredId(token: unknown): number | undefined {
    const text = tokenText(token)
    if (text === undefined) return undefined
    const id = this.idOf(text)
    if (id !== undefined) return id
    throw new Qwen3Nvfp4Error(
      'TOKENIZER_INVALID',
      `tokenizer_config.json names a token ${text} that is not in tokenizer.json`,
    )
  }

  #makeBytes(id: number): Uint8Array {
    const token = this.#tokenizer.id_to_token(id)
    if (token === undefined) return nothing
    const bytes = this.#added.has(id) ? undefined : byteLevelToBytes(token)
    return bytes ?? new TextEncoder().encode(token)
  }
}
