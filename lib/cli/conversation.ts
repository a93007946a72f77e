/** A conversation of `chat`, and what its flags want done around the turns. */
import {
  type CacheDtype,
  type ChatModel,
  ChatSession,
  type KvCache,
  MemoryReport,
  type Qwen3Nvfp4Model,
  readTranscript,
  type Tokenizer,
  type TurnSummary,
} from 'qwen3-nvfp4'
import { CacheFile, type LogitsReport, reportLogits, tokenByToken } from './chat-model'
import { Exit, exitCodes } from './exit'
import { json, line, note, seconds, warn, write } from './output'
import { type SamplingFlags, samplingOptions, withTimeout } from './sampling-flags'

export interface ConversationFlags extends SamplingFlags {
  system?: string
  thinking?: boolean
  resume?: string
  transcript?: string[]
  contextTokens: number
  cacheDtype?: CacheDtype
  cacheFile?: string
  offloadCache?: boolean
  emptyCacheEachTurn?: boolean
  prefill: 'whole' | 'token-by-token'
  checkLogits?: boolean
  timing?: boolean
  memoryReport?: string
  json?: boolean
}

interface Parts {
  model: Qwen3Nvfp4Model
  tokenizer: Tokenizer
  flags: ConversationFlags
  signal: AbortSignal
  cache: KvCache
  cacheFile: CacheFile | undefined
  report: MemoryReport
}

const noIds = new Int32Array(0)

export class Conversation {
  readonly #parts: Parts
  #session: ChatSession
  #turns = 0
  #interrupt = new AbortController()

  static async open(
    model: Qwen3Nvfp4Model,
    tokenizer: Tokenizer,
    flags: ConversationFlags,
    signal: AbortSignal,
  ): Promise<Conversation> {
    const { cacheDtype, contextTokens } = flags
    const messages = flags.resume === undefined ? [] : await readTranscript(flags.resume)
    const cache = model.createKvCache({ maxTokens: contextTokens, ...(cacheDtype && { dtype: cacheDtype }) })
    const cacheFile = flags.cacheFile === undefined ? undefined : new CacheFile(flags.cacheFile)
    const cacheIds = (await cacheFile?.restore(cache)) ?? noIds
    const report = new MemoryReport(model)
    await report.record('model_loaded')
    return new Conversation({ model, tokenizer, flags, signal, cache, cacheFile, report }, messages, cacheIds)
  }

  private constructor(parts: Parts, messages: ChatSession['messages'], cacheIds: Int32Array) {
    this.#parts = parts
    this.#session = this.#openSession(messages, cacheIds)
  }

  async close(): Promise<void> {
    await this.#parts.cache.dispose()
  }

  /** Ends the answer that is being made, keeping what came. */
  interrupt(): void {
    this.#interrupt.abort(new Error('interrupted'))
  }

  /** A line that begins with a slash; false ends the conversation. */
  async command(entered: string): Promise<boolean> {
    const [name, ...rest] = entered.trim().split(/\s+/)
    if (name === '/quit') return false
    if (name === '/reset') await this.#reset()
    else if (name === '/save' && rest.length > 0) await this.#session.saveTranscript(rest.join(' '))
    else warn('/reset forgets the conversation, /save <path> writes it, /quit ends; Ctrl-C ends an answer')
    return true
  }

  async turn(input: string): Promise<void> {
    const { flags, cache, cacheFile } = this.#parts
    if (flags.emptyCacheEachTurn) await this.#emptyCache()
    if (flags.offloadCache && this.#turns > 0) await cacheFile!.restore(cache)
    const logits = flags.checkLogits ? await this.#checkLogits(input) : undefined
    this.#turns++
    const begin = performance.now()
    const { firstAt, summary } = await this.#answer(input)
    const end = performance.now()
    const times = {
      firstTextSeconds: firstAt === undefined ? null : seconds(firstAt - begin),
      totalSeconds: seconds(end - begin),
      tokensPerSecond: (1000 * summary.generatedTokens) / (end - begin),
      cacheTokens: cache.seqLen,
      cacheBytes: await cache.bytes(),
    }
    if (flags.json) json({ turn: this.#turns, prompt: input, ...summary, ...times, ...(logits && { logits }) })
    else line('')
    if (flags.timing) showTiming(summary, times)
    await this.#afterTurn()
  }

  /** Streams the answer. One that is stopped before any text came leaves the conversation as it was. */
  async #answer(input: string): Promise<{ firstAt: number | undefined; summary: TurnSummary }> {
    const { flags, signal } = this.#parts
    this.#interrupt = new AbortController()
    const stop = AbortSignal.any([withTimeout(signal, flags), this.#interrupt.signal])
    let firstAt: number | undefined
    try {
      for await (const piece of this.#session.stream(input, { signal: stop, keepPartial: true })) {
        firstAt ??= performance.now()
        if (!flags.json) write(piece)
      }
      return { firstAt, summary: this.#session.lastTurn! }
    } catch (error) {
      if (signal.aborted || !stop.aborted) throw error
      const nothing = { cachedTokens: 0, prefilledTokens: 0, generatedTokens: 0 }
      return { firstAt, summary: { answer: '', finishReason: 'aborted', ...nothing } }
    }
  }

  async #afterTurn(): Promise<void> {
    const { flags, cache, cacheFile, report } = this.#parts
    for (const path of flags.transcript ?? []) await this.#session.saveTranscript(path)
    await report.record(`turn_${this.#turns}_done`)
    if (flags.memoryReport !== undefined) await report.save(flags.memoryReport)
    await cacheFile?.save(cache, this.#session.cacheIds)
    if (flags.offloadCache) await cache.reset()
  }

  #openSession(messages: ChatSession['messages'], cacheIds: Int32Array): ChatSession {
    const { model, tokenizer, flags, cache } = this.#parts
    const { system, thinking, prefill } = flags
    const fed: ChatModel = prefill === 'whole' ? model : tokenByToken(model)
    return new ChatSession({
      model: fed,
      tokenizer,
      cache,
      cacheIds,
      generation: samplingOptions(flags),
      ...(messages.length > 0 ? { messages } : system !== undefined && { systemPrompt: system }),
      ...(thinking !== undefined && { enableThinking: thinking }),
    })
  }

  async #reset(): Promise<void> {
    const { cache, cacheFile } = this.#parts
    await this.#session.reset()
    await cacheFile?.save(cache, noIds)
  }

  async #emptyCache(): Promise<void> {
    const { messages } = this.#session
    await this.#parts.cache.reset()
    this.#session = this.#openSession(messages, noIds)
  }

  async #checkLogits(input: string): Promise<LogitsReport> {
    const { model, tokenizer, flags } = this.#parts
    const messages = [...this.#session.messages, { role: 'user' as const, content: input }]
    const ids = tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true, enableThinking: flags.thinking })
    const report = await reportLogits(model, ids)
    const { nan, infinite, min, max, top } = report
    const range = `${min.toFixed(3)} to ${max.toFixed(3)}, largest of id ${top}`
    note(`[logits ${range}; ${nan} NaN, ${infinite} infinite]`)
    if (nan + infinite > 0) throw new Exit(exitCodes.failure, `${nan} logits are NaN and ${infinite} infinite`)
    return report
  }
}

interface Times {
  firstTextSeconds: number | null
  totalSeconds: number
  tokensPerSecond: number
  cacheTokens: number
  cacheBytes: number
}

function showTiming({ cachedTokens, prefilledTokens, generatedTokens, finishReason }: TurnSummary, times: Times): void {
  const { firstTextSeconds, totalSeconds, tokensPerSecond, cacheTokens, cacheBytes } = times
  warn(
    `[${cachedTokens} tokens kept, ${prefilledTokens} read, ${generatedTokens} written; first text after ` +
      `${firstTextSeconds ?? '-'} s, ${totalSeconds} s in all, ${tokensPerSecond.toFixed(1)} tokens/s; cache ` +
      `${cacheTokens} tokens, ${(cacheBytes / 2 ** 20).toFixed(1)} MiB; ${finishReason}]`,
  )
}
