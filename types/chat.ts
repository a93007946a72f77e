/** What lib/chat expects of a model and its cache, and the shapes of a conversation. */
import type { GeneratedToken, GenerateOptions, KvCacheOptions } from './options'

export type ChatRole = 'system' | 'user' | 'assistant' | 'tool'

/** One call of a tool, as an assistant message carries it and Qwen3's template renders it. */
export interface ChatToolCall {
  id?: string
  type?: 'function'
  function: { name: string; arguments: string | Record<string, unknown> }
}

/** One message, in the shape that Hugging Face chat templates read (hence the snake case). */
export interface ChatMessage {
  role: ChatRole
  content: string
  /** The thoughts of an assistant message, where the template renders them apart from the content. */
  reasoning_content?: string
  tool_calls?: ChatToolCall[]
}

/** A tool's JSON schema, handed to the template as it is. */
export type ChatTool = Record<string, unknown>

export interface ChatTemplateOptions {
  /** Ends with the header of the assistant's turn, for it to be continued. Default: false. */
  addGenerationPrompt?: boolean
  /** Tools that the model may call. Default: none. */
  tools?: ChatTool[]
  /** Passed to the template as `enable_thinking` when given; templates without it ignore it. */
  enableThinking?: boolean
}

/** The part of a key/value cache that a conversation needs. */
export interface ChatCache {
  /** Positions in use, in tokens. */
  readonly seqLen: number
  /** Positions that fit, in tokens. */
  readonly maxTokens: number
  /** Keeps the first `tokens` positions. */
  truncate(tokens: number): void | Promise<void>
  reset(): void | Promise<void>
  dispose?(): void | Promise<void>
}

/**
 * The part of a model that a conversation needs. `generate` appends its prompt to the cache; afterwards every produced
 * token except the last one is in the cache too. Leaving the iteration early settles once the model has stopped.
 */
export interface ChatModel<Cache extends ChatCache = ChatCache> {
  generate(ids: Int32Array, options: GenerateOptions & { cache?: Cache }): AsyncIterable<GeneratedToken>
  forwardWithKvCache(ids: Int32Array, cache: Cache, options: { logits: 'none'; signal?: AbortSignal }): Promise<unknown>
  createKvCache(options: KvCacheOptions): Cache
}
