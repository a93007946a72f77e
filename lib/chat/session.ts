import type {
  ChatCache,
  ChatMessage,
  ChatModel,
  ChatTemplateOptions,
  PromptOptions,
  TextOptions,
  Transcript,
  TurnOptions,
  TurnSummary,
} from '../../types/chat'
import { checkFunction, checkInteger, checkSignal } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { ConversationCache } from './conversation-cache'
import { generateText } from './generate-text'
import { checkSessionOptions, inputMessages } from './session-options'
import type { ChatSessionOptions, TurnInput } from './session-options'
import type { Tokenizer } from './tokenizer'
import { parseTranscript, readTranscript, toTranscript, writeTranscript } from './transcript'

const defaultContextTokens = 4096
const defaultMaxTokens = 1024

/** A turn under way. */
interface Turn {
  /** The conversation up to and with this turn's input. */
  messages: ChatMessage[]
  /** Its ids, up to where the answer begins. */
  prompt: Int32Array
  /** Tokens that the template puts behind an answer. */
  closingTokens: number
  /** What the cache held before. */
  idsBefore: Int32Array
  keepPartial: boolean
  summary: TurnSummary
}

/**
 * A conversation whose cache is kept from turn to turn: after every turn it holds the whole conversation as the chat
 * template renders it, the end of the last answer included, and the next turn computes only its own new tokens. Where a
 * template rewrites earlier turns (a thinking one drops their thoughts), what follows the first change is computed again.
 *
 * A turn that fails, is aborted or is left early changes nothing, unless `keepPartial` is set. One turn runs at a time.
 */
export class ChatSession {
  readonly #model: ChatModel
  readonly #tokenizer: Tokenizer
  readonly #held: ConversationCache
  readonly #ownsCache: boolean
  readonly #generation: TextOptions
  readonly #template: ChatTemplateOptions
  readonly #system: ChatMessage[]
  #messages: ChatMessage[]
  /** The rendered conversation up to the last answer; empty before the first turn. */
  #ids: Int32Array = new Int32Array(0)
  #lastTurn: TurnSummary | undefined
  #busy = false
  #disposed = false

  constructor(options: ChatSessionOptions) {
    const { model, tokenizer, systemPrompt, messages = [], cache, cacheIds = [] } = checkSessionOptions(options)
    this.#model = model
    this.#tokenizer = tokenizer
    this.#generation = { ...options.generation }
    this.#template = { tools: options.tools, enableThinking: options.enableThinking }
    const first = messages[0]?.role === 'system' ? [messages[0]] : []
    this.#system = systemPrompt === undefined ? structuredClone(first) : [{ role: 'system', content: systemPrompt }]
    this.#messages = [...this.#system, ...structuredClone(messages.slice(first.length))]
    if (messages.length > first.length) this.#ids = this.#render(this.#messages)
    this.#ownsCache = cache === undefined
    const { contextTokens = defaultContextTokens, cacheDtype } = options
    this.#held = new ConversationCache(
      model,
      cache ?? model.createKvCache({ maxTokens: contextTokens, ...(cacheDtype && { dtype: cacheDtype }) }),
      Int32Array.from(cacheIds),
    )
  }

  /** A session that goes on with a stored conversation, which its first turn (or `prefill`) computes. */
  static fromJSON(transcript: unknown, options: Omit<ChatSessionOptions, 'messages' | 'systemPrompt'>): ChatSession {
    return new ChatSession({ ...options, messages: parseTranscript(transcript) })
  }

  /** `fromJSON` of a file that `saveTranscript` wrote. */
  static async load(
    path: string | URL,
    options: Omit<ChatSessionOptions, 'messages' | 'systemPrompt'>,
  ): Promise<ChatSession> {
    return new ChatSession({ ...options, messages: await readTranscript(path) })
  }

  /** The conversation so far, a copy. */
  get messages(): ChatMessage[] {
    return structuredClone(this.#messages)
  }

  get cache(): ChatCache {
    return this.#held.cache
  }

  /** The ids whose keys and values the cache holds, to be kept beside a saved cache. */
  get cacheIds(): Int32Array {
    return this.#held.ids.slice()
  }

  /** Tokens of the rendered conversation up to the last answer; after a turn also `cache.seqLen`. */
  get tokenCount(): number {
    return this.#ids.length
  }

  /** What the last turn that became part of the conversation came to. */
  get lastTurn(): TurnSummary | undefined {
    return this.#lastTurn && { ...this.#lastTurn }
  }

  /** The whole answer to `input`. */
  async prompt(input: TurnInput, { onText, ...options }: PromptOptions = {}): Promise<string> {
    checkFunction('onText', onText)
    let answer = ''
    for await (const text of this.stream(input, options)) {
      answer += text
      onText?.(text)
    }
    return answer
  }

  /** The answer to `input` in pieces as they come. The turn begins and ends with the iteration. */
  stream(input: TurnInput, options: TurnOptions = {}): AsyncGenerator<string, void, undefined> {
    const messages = inputMessages(input)
    checkSignal(options.signal)
    this.#checkUsable()
    return this.#run(messages, options)
  }

  /** Computes what the cache lacks of the conversation, so that the next turn need not. */
  async prefill(): Promise<void> {
    await this.#alone(async () => {
      this.#held.checkUnchanged()
      this.#held.checkRoom(this.#ids, 0)
      await this.#held.fill(this.#ids)
    })
  }

  /** Goes back to the system prompt and an empty cache. */
  async reset(): Promise<void> {
    await this.#alone(async () => {
      this.#messages = [...this.#system]
      this.#ids = new Int32Array(0)
      this.#lastTurn = undefined
      this.#held.forget()
      await this.#held.truncate(0)
    })
  }

  /** The conversation as plain data, for `fromJSON`. */
  toJSON(): Transcript {
    return toTranscript(this.#messages)
  }

  /** Writes the conversation as `writeTranscript` does: .jsonl, .txt or JSON by the name. */
  async saveTranscript(path: string | URL): Promise<void> {
    await writeTranscript(path, this.#messages)
  }

  /** Frees the session's own cache; a second call does nothing. */
  async dispose(): Promise<void> {
    if (this.#disposed) return
    this.#checkUsable()
    this.#disposed = true
    if (this.#ownsCache) await this.#held.cache.dispose?.()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  #checkUsable(): void {
    if (this.#disposed) throw new Qwen3Nvfp4Error('DISPOSED', 'the ChatSession was disposed')
    if (this.#busy) throw new Qwen3Nvfp4Error('BUSY', 'the ChatSession is in the middle of a turn; await its end first')
  }

  async #alone(work: () => Promise<void>): Promise<void> {
    this.#checkUsable()
    this.#busy = true
    try {
      await work()
    } finally {
      this.#busy = false
    }
  }

  #render(messages: readonly ChatMessage[], addGenerationPrompt = false): Int32Array {
    return this.#tokenizer.applyChatTemplate(messages, { ...this.#template, addGenerationPrompt })
  }

  /** Refuses a turn that cannot be made, with nothing changed. */
  #prepare(input: ChatMessage[], keepPartial: boolean): Turn {
    this.#held.checkUnchanged()
    const messages = [...this.#messages, ...input]
    const prompt = this.#render(messages, true)
    const closed = this.#render([...messages, { role: 'assistant', content: '' }])
    const closingTokens = Math.max(0, closed.length - prompt.length)
    this.#held.checkRoom(prompt, closingTokens + 1)
    const cachedTokens = this.#held.reusable(prompt, true)
    const prefilledTokens = prompt.length - cachedTokens
    const summary = { answer: '', finishReason: 'aborted', cachedTokens, prefilledTokens, generatedTokens: 0 } as const
    return { messages, prompt, closingTokens, idsBefore: this.#held.ids, keepPartial, summary: { ...summary } }
  }

  async *#run(
    input: ChatMessage[],
    { keepPartial = false, ...options }: TurnOptions,
  ): AsyncGenerator<string, void, undefined> {
    this.#checkUsable()
    options.signal?.throwIfAborted()
    this.#busy = true
    try {
      const turn = this.#prepare(input, keepPartial)
      let settled = false
      try {
        yield* this.#generate(turn, options)
        await this.#commit(turn)
        settled = true
      } catch (error) {
        settled = true
        const kept = await this.#abandon(turn)
        if (!kept || !options.signal?.aborted) throw error
      } finally {
        // Neither done nor failed: the caller has left the iteration.
        if (!settled) await this.#abandon(turn)
      }
    } finally {
      this.#busy = false
    }
  }

  /** Gives out the answer, and leaves the cache holding a beginning of the prompt followed by the answer's tokens. */
  async *#generate(turn: Turn, options: TextOptions): AsyncGenerator<string, void, undefined> {
    const { prompt, summary } = turn
    const { cache } = this.#held
    const settings = { ...this.#generation, ...options }
    const wanted = checkInteger('maxTokens', settings.maxTokens ?? defaultMaxTokens, 1)
    const maxTokens = Math.min(wanted, cache.maxTokens - prompt.length - turn.closingTokens)
    await this.#held.truncate(summary.cachedTokens)
    const history = prompt.subarray(0, summary.cachedTokens)
    const rest = prompt.subarray(summary.cachedTokens)
    const produced: number[] = []
    try {
      const pieces = generateText(this.#model, this.#tokenizer, rest, { ...settings, maxTokens, history, cache })
      for await (const { id, text, finishReason } of pieces) {
        produced.push(id)
        summary.generatedTokens++
        summary.answer += text
        if (finishReason) {
          const cutShort = finishReason === 'max-tokens' && maxTokens < wanted
          summary.finishReason = cutShort ? 'cache-full' : finishReason
        }
        if (text) yield text
      }
    } finally {
      await this.#held.adopt(prompt, produced)
    }
  }

  /** Makes the answer part of the conversation, and the cache hold the conversation as the template renders it. */
  async #commit({ messages, summary }: Turn): Promise<void> {
    const all: ChatMessage[] = [...messages, { role: 'assistant', content: summary.answer }]
    const ids = this.#render(all)
    this.#held.checkRoom(ids, 0)
    await this.#held.fill(ids)
    this.#messages = all
    this.#ids = ids
    this.#lastTurn = summary
  }

  /** Keeps what came of an unfinished turn if that was asked for (true), or goes back to what was before it. */
  async #abandon(turn: Turn): Promise<boolean> {
    // Errors in here give way to the one that ended the turn; what they leave unknown is computed again by the next.
    if (turn.keepPartial && turn.summary.answer !== '') {
      const kept = await this.#commit(turn).then(
        () => true,
        () => false,
      )
      if (kept) return true
    }
    await this.#held.fill(turn.idsBefore).catch(() => this.#held.forget())
    return false
  }
}
