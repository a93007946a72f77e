import { Template } from '@huggingface/jinja'
import type { ChatMessage, ChatTemplateOptions } from '../../types/chat'
import { wrongType, wrongValue } from '../check'
import { Qwen3Nvfp4Error } from '../errors'

const roles: readonly string[] = ['system', 'user', 'assistant', 'tool']

/** Throws unless every message has a known role and text. */
export function checkMessages(messages: unknown, name = 'messages'): readonly ChatMessage[] {
  if (!Array.isArray(messages)) throw wrongType('an array of messages', name, messages)
  messages.forEach((message, i) => {
    if (typeof message !== 'object' || message === null) throw wrongType('a message', `${name}[${i}]`, message)
    const { role, content } = message as Partial<ChatMessage>
    if (!roles.includes(role as string)) throw wrongValue(`one of ${roles.join(', ')}`, `${name}[${i}].role`, role)
    if (typeof content !== 'string') throw wrongType('a string', `${name}[${i}].content`, content)
  })
  return messages
}

/** A conversation's text as the Jinja template of a checkpoint renders it. */
export class ChatTemplate {
  readonly source: string
  readonly #template: Template
  readonly #variables: Record<string, unknown>

  /** `variables` are what templates expect beside the messages, such as `eos_token`. */
  constructor(source: string, variables: Record<string, unknown> = {}) {
    this.source = source
    this.#variables = variables
    try {
      this.#template = new Template(source)
    } catch (cause) {
      throw new Qwen3Nvfp4Error('CHAT_TEMPLATE_FAILED', `cannot parse the chat template: ${(cause as Error).message}`, {
        cause,
      })
    }
  }

  render(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    checkMessages(messages)
    const { addGenerationPrompt = false, tools, enableThinking } = options
    const input: Record<string, unknown> = {
      ...this.#variables,
      messages,
      add_generation_prompt: addGenerationPrompt,
    }
    if (tools?.length) input.tools = tools
    if (enableThinking !== undefined) input.enable_thinking = enableThinking
    try {
      return this.#template.render(input)
    } catch (cause) {
      throw new Qwen3Nvfp4Error('CHAT_TEMPLATE_FAILED', `the chat template failed: ${(cause as Error).message}`, {
        cause,
      })
    }
  }
}

/**
 * The template of a tokenizer_config.json: its text, or the one called `default` in a list of named ones. Undefined when
 * there is none.
 */
export function templateSource(chatTemplate: unknown): string | undefined {
  if (typeof chatTemplate === 'string') return chatTemplate
  if (!Array.isArray(chatTemplate)) return undefined
  const named = chatTemplate as { name?: unknown; template?: unknown }[]
  const source = named.find((item) => item?.name === 'default')?.template
  return typeof source === 'string' ? source : undefined
}
