/** What lib/chat expects of a model and its cache, and the shapes of a conversation. */
import type { FinishReason, GeneratedToken, GenerateOptions, KvCacheOptions } from './options'

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
 * The part of a model that text generation needs. It appends the prompt to the cache; afterwards every produced token
 * except the last one is in the cache too. Leaving the iteration early settles once the model has stopped.
 */
export interface TextModel {
  generate(ids: Int32Array, options: GenerateOptions & { cache?: ChatCache }): AsyncIterable<GeneratedToken>
}

/** The part of a model that a conversation needs. */
export interface ChatModel extends TextModel {
  forwardWithKvCache(ids: Int32Array, cache: ChatCache, options: { logits: 'none' }): Promise<unknown>
  createKvCache(options: KvCacheOptions): ChatCache
}

export interface TextOptions extends Omit<GenerateOptions, 'cache'> {
  /** Ends the text before the first of these; no part of it is given out. Default: none. */
  stopStrings?: readonly string[]
}

export interface GenerateTextOptions extends TextOptions {
  /** Holds what came before; gets the prompt and the tokens whose text was given out. Default: a temporary one. */
  cache?: ChatCache
  /** Gives special tokens no text. Default: true. */
  skipSpecialTokens?: boolean
}

export type TextFinishReason = FinishReason | 'stop-string'

/** A token and the text that became certain with it: possibly none, possibly some of earlier tokens. */
export interface GeneratedText extends Omit<GeneratedToken, 'finishReason'> {
  text: string
  /** Why the text ended; on the last one only. */
  finishReason?: TextFinishReason
  /** The stop string that was found. */
  stopString?: string
}

export interface TurnOptions extends TextOptions {
  /**
   * What becomes of a turn that is aborted, fails or is left early after some text came: true keeps that text as the
   * answer (an aborted turn then ends normally), false leaves session and cache as they were before. Default: false.
   */
  keepPartial?: boolean
}

export interface PromptOptions extends TurnOptions {
  /** Called with every piece of the answer as it comes. */
  onText?: (text: string) => void
}

/** What a turn came to. */
export interface TurnSummary {
  answer: string
  finishReason: TextFinishReason | 'aborted'
  /** Tokens that were in the cache already. */
  cachedTokens: number
  /** Tokens computed before the first new one. */
  prefilledTokens: number
  /** Tokens produced, the one that ended the answer included. */
  generatedTokens: number
}

/** A conversation as it is stored. */
export interface Transcript {
  format: 'qwen3-nvfp4-chat'
  version: 1
  messages: ChatMessage[]
}
