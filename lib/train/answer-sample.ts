import type { ChatMessage } from '../../types/chat'
import type { AnswerOptions, TrainingSample, TrainingTokenizer } from '../../types/training'
import { checkMessages } from '../chat/chat-template'
import { checkBoolean, checkOneOf, checkOptions, wrongType, wrongValue } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { ignoreLabel } from '../model/token-batch'
import { runNow } from './pacer'
import { textPieces } from './text-pieces'

export const answerOptionNames: readonly (keyof AnswerOptions)[] = ['answers', 'tools', 'enableThinking']

/** Throws unless this is what training needs of a Tokenizer. */
export function checkTokenizer(value: unknown): TrainingTokenizer {
  const tokenizer = value as Partial<TrainingTokenizer> | null | undefined
  if (typeof tokenizer?.encode !== 'function' || typeof tokenizer.renderChatTemplate !== 'function') {
    throw wrongType('a Tokenizer', 'tokenizer', value)
  }
  return tokenizer as TrainingTokenizer
}

export function checkAnswerOptions({ answers = 'all', tools, enableThinking }: AnswerOptions): AnswerOptions {
  if (tools !== undefined && !Array.isArray(tools)) throw wrongType('an array of tools', 'tools', tools)
  return {
    answers: checkOneOf<'all' | 'last'>('answers', answers, ['all', 'last']),
    tools,
    enableThinking: enableThinking === undefined ? undefined : checkBoolean('enableThinking', enableThinking),
  }
}

/** Throws unless the messages are a conversation whose answers can be learned. */
export function checkConversation(messages: unknown): readonly ChatMessage[] {
  const conversation = checkMessages(messages)
  conversation.forEach(({ role, content, tool_calls: calls }, i) => {
    if (role !== 'assistant') return
    if (content.trim() === '' && !calls?.length) {
      throw wrongValue('an answer that is not empty', `messages[${i}].content`, content)
    }
    if (i === 0) throw wrongValue('a message before the first answer', 'messages[0].role', role)
  })
  const last = conversation.at(-1)?.role
  if (last !== 'assistant') throw wrongValue('an answer', `the last of messages`, last)
  return conversation
}

interface Part {
  text: string
  learned: boolean
}

const rewrites = (what: string, remedy: string) =>
  new Qwen3Nvfp4Error('TRAINING_TEMPLATE_REWRITES', `the chat template ${what}; ${remedy}`)

/** The answer that a rendered conversation ends with, up to and with the token that closes it. */
function closedAnswer(tokenizer: TrainingTokenizer, rest: string): string {
  const ends = tokenizer.stopTokenIds.map((id) => tokenizer.decode([id])).filter((text) => text !== '')
  const closings = ends.map((text) => ({ at: rest.lastIndexOf(text), text })).filter(({ at }) => at >= 0)
  const closing = closings.sort((a, b) => b.at - a.at)[0]
  if (!closing) {
    throw rewrites(
      `puts none of ${ends.join(', ')} behind an answer`,
      'a model trained on it would never stop; use the template of the checkpoint',
    )
  }
  const answer = rest.slice(0, closing.at)
  const inside = ends.find((text) => answer.includes(text))
  if (inside !== undefined) throw wrongValue(`an answer without ${inside} in it`, 'content', answer)
  return answer + closing.text
}

/**
 * A conversation as it is served, cut where answers begin and end: each answer follows the very prompt that a session
 * renders for it, and ends with the token that stops generation.
 */
function answerParts(
  tokenizer: TrainingTokenizer,
  messages: readonly ChatMessage[],
  { answers, tools, enableThinking }: AnswerOptions,
): Part[] {
  const render = (count: number, addGenerationPrompt: boolean) =>
    tokenizer.renderChatTemplate(messages.slice(0, count), { addGenerationPrompt, tools, enableThinking })
  const parts: Part[] = []
  let done = ''
  for (let i = answers === 'last' ? messages.length - 1 : 0; i < messages.length; i++) {
    if (messages[i]!.role !== 'assistant') continue
    const prompt = render(i, true)
    if (!prompt.startsWith(done)) {
      throw rewrites(
        `renders messages before messages[${i}] otherwise than when they were answered`,
        "train on each conversation's last answer alone (answers: 'last')",
      )
    }
    const whole = render(i + 1, false)
    if (!whole.startsWith(prompt)) {
      throw rewrites(
        `does not continue the prompt of messages[${i}] with its answer`,
        'check enableThinking and what the template does with thoughts',
      )
    }
    const answer = closedAnswer(tokenizer, whole.slice(prompt.length))
    parts.push({ text: prompt.slice(done.length), learned: false }, { text: answer, learned: true })
    done = prompt + answer
  }
  return parts
}

/** The sample of a checked conversation; yields between short pieces of tokenising. */
export function* answerSampleSteps(
  tokenizer: TrainingTokenizer,
  messages: readonly ChatMessage[],
  options: AnswerOptions,
): Generator<void, TrainingSample, void> {
  const encoded: { ids: Int32Array; learned: boolean }[] = []
  for (const { text, learned } of answerParts(tokenizer, messages, options)) {
    for (const piece of textPieces(text)) {
      encoded.push({ ids: tokenizer.encode(piece), learned })
      yield
    }
  }
  const length = encoded.reduce((sum, { ids }) => sum + ids.length, 0)
  const sample = { ids: new Int32Array(length), labels: new Int32Array(length).fill(ignoreLabel) }
  let at = 0
  for (const { ids, learned } of encoded) {
    sample.ids.set(ids, at)
    if (learned) sample.labels.set(ids, at)
    at += ids.length
  }
  return sample
}

/**
 * A conversation to learn the answers of: the ids are those of the prompt that is served, of the answer, and of the token
 * that closes it; only answers and their closing tokens have labels.
 *
 * @example
 * const { ids, labels } = answerSample(tokenizer, [
 *   { role: 'user', content: '你是誰' },
 *   { role: 'assistant', content: '我是 F# 之神' },
 * ])
 */
export function answerSample(
  tokenizer: TrainingTokenizer,
  messages: readonly ChatMessage[],
  options?: AnswerOptions,
): TrainingSample {
  const given = checkAnswerOptions(checkOptions(options, 'options', answerOptionNames))
  return runNow(answerSampleSteps(checkTokenizer(tokenizer), checkConversation(messages), given))
}
