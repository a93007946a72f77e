/** What a line of training data may hold: `prompt<TAB>answer`, or chat messages as JSON. */
import type { ChatMessage } from '../../types/chat'
import type { AnswerOptions } from '../../types/training'
import { wrongShape, wrongType } from '../check'
import { checkConversation } from './answer-sample'
import { lineError } from './text-lines'

/** Plain data, as it is hashed, and sent to threads. */
export type LineFormat = { kind: 'tsv'; systemPrompt: string | undefined } | { kind: 'chat' }

/** What a line holds. */
export interface LineContent {
  messages: readonly ChatMessage[]
  tools?: AnswerOptions['tools']
}

/** Reads a line, or throws a TypeError or RangeError that says what is wrong; undefined for one that is no sample. */
type LineParser = (text: string) => LineContent | undefined

/** Lines of `prompt<TAB>answer`; empty ones and those that begin with `#` are no samples. */
function tsvParser(systemPrompt: string | undefined): LineParser {
  const system: ChatMessage[] = systemPrompt === undefined ? [] : [{ role: 'system', content: systemPrompt }]
  return (text) => {
    if (text.startsWith('#') || text.trim() === '') return undefined
    const fields = text.split('\t')
    if (fields.length !== 2)
      throw wrongShape('a prompt, one tab and an answer', 'the line', `${fields.length - 1} tabs`)
    const [prompt = '', answer = ''] = fields
    if (prompt.trim() === '') throw wrongShape('a prompt', 'the text before the tab', 'none')
    if (answer.trim() === '') throw wrongShape('an answer', 'the text behind the tab', 'none')
    return { messages: [...system, { role: 'user', content: prompt }, { role: 'assistant', content: answer }] }
  }
}

/** Lines of `{"messages": [{"role", "content"}, …]}`, with `tools` where a conversation has its own; empty ones are none. */
const chatParser: LineParser = (text) => {
  if (text.trim() === '') return undefined
  const value = JSON.parse(text) as { messages?: unknown; tools?: unknown } | null
  if (typeof value !== 'object' || Array.isArray(value)) throw wrongType('an object', 'the line', value)
  const tools = value?.tools ?? undefined
  if (tools !== undefined && !Array.isArray(tools)) throw wrongType('an array', 'tools', tools)
  return { messages: checkConversation(value?.messages), ...(tools && { tools }) }
}

/** Reads a line of a file, whose name and number an error has. */
export function lineParser(format: LineFormat): (file: string, line: number, text: string) => LineContent | undefined {
  const parse = format.kind === 'tsv' ? tsvParser(format.systemPrompt) : chatParser
  return (file, line, text) => {
    try {
      return parse(text)
    } catch (cause) {
      throw lineError(file, line, (cause as Error).message, text, cause)
    }
  }
}
