import type { ChatCache, ChatMessage, ChatModel, ChatTool, TextOptions } from '../../types/chat'
import type { CacheDtype } from '../../types/options'
import { checkInt32Values, checkInteger, checkOptions, wrongType, wrongValue } from '../check'
import { checkMessages } from './chat-template'
import type { Tokenizer } from './tokenizer'

export interface ChatSessionOptions {
  model: ChatModel
  tokenizer: Tokenizer
  /** Put in front of the conversation. Default: none. */
  systemPrompt?: string
  /** The conversation so far. Default: none. */
  messages?: readonly ChatMessage[]
  /**
   * A cache for this session alone, empty or holding `cacheIds`, which stays the caller's to dispose. Default: one of
   * its own.
   */
  cache?: ChatCache
  /**
   * The ids whose keys and values `cache` holds, such as one that was restored: `cacheIds` of the session that saved it.
   * What the conversation has in common with them is not computed again. Default: none.
   */
  cacheIds?: Int32Array | readonly number[]
  /** Tokens of the whole conversation that the session's own cache may hold. Default: 4096. */
  contextTokens?: number
  /** Element type of the session's own cache. Default: the model's. */
  cacheDtype?: CacheDtype
  /** Defaults of every turn; `maxTokens` is 1024 an answer when absent. */
  generation?: Omit<TextOptions, 'signal' | 'history'>
  /** Tools that the template tells the model about. Default: none. */
  tools?: ChatTool[]
  /** Whether a thinking model thinks first. Default: as its template has it. */
  enableThinking?: boolean
}

const optionNames: (keyof ChatSessionOptions)[] = [
  'model',
  'tokenizer',
  'systemPrompt',
  'messages',
  'cache',
  'cacheIds',
  'contextTokens',
  'cacheDtype',
  'generation',
  'tools',
  'enableThinking',
]

export function checkSessionOptions(options: ChatSessionOptions): ChatSessionOptions {
  const { model, tokenizer, systemPrompt, messages, cache, cacheIds, contextTokens } = checkOptions(
    options,
    'options',
    optionNames,
  )
  if (typeof model?.generate !== 'function') throw wrongType('a model', 'model', model)
  if (typeof tokenizer?.applyChatTemplate !== 'function') throw wrongType('a Tokenizer', 'tokenizer', tokenizer)
  const held = cacheIds === undefined ? 0 : checkInt32Values('cacheIds', cacheIds, 0, 2 ** 31 - 1).length
  if (held > 0 && cache === undefined) throw wrongValue('nothing without a cache', 'cacheIds', cacheIds)
  if (cache !== undefined && cache?.seqLen !== held) {
    throw wrongValue(held === 0 ? 'an empty cache' : `a cache of ${held} tokens, as cacheIds has,`, 'cache', cache)
  }
  if (contextTokens !== undefined) checkInteger('contextTokens', contextTokens, 1)
  if (messages !== undefined) checkMessages(messages)
  if (systemPrompt === undefined) return options
  if (typeof systemPrompt !== 'string') throw wrongType('a string', 'systemPrompt', systemPrompt)
  if (messages?.[0]?.role === 'system') {
    throw wrongValue('nothing beside messages that begin with a system message', 'systemPrompt', systemPrompt)
  }
  return options
}

/** What a turn adds to the conversation: a user's text, or messages such as the answers of tools. */
export type TurnInput = string | ChatMessage | readonly ChatMessage[]

/** The messages of a turn's input, copied. */
export function inputMessages(input: TurnInput): ChatMessage[] {
  if (typeof input === 'string') return [{ role: 'user', content: input }]
  const messages = checkMessages(Array.isArray(input) ? input : [input], 'input')
  if (messages.length === 0) throw wrongValue('at least one message', 'input', input)
  return structuredClone(messages) as ChatMessage[]
}
