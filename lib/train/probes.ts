import type { ChatMessage } from '../../types/chat'
import { checkOptions, checkString, wrongType, wrongValue } from '../check'
import { checkMessages } from '../chat/chat-template'
import { generateText } from '../chat/generate-text'
import type { Tokenizer } from '../chat/tokenizer'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'

/** A text that an answer is to hold, or a pattern that it is to match. */
export type Expectation = string | RegExp

/** A question that is asked again and again during training. */
export interface Probe {
  /** What the user says, or a conversation that the model is to go on with. */
  prompt: string | readonly ChatMessage[]
  /** What the answer must hold. Default: anything will do. */
  expect?: Expectation
  /** What the answer must not hold. Default: nothing is forbidden. */
  forbid?: Expectation
  /** Probes of a group are counted together. Default: 'all'. */
  group?: string
}

export interface ProbeAnswer extends Probe {
  text: string
  /** Whether expect and forbid hold; undefined when there is neither. */
  holds?: boolean
}

export function checkProbes(probes: unknown): readonly Probe[] {
  if (!Array.isArray(probes)) throw wrongType('an array of probes', 'probes', probes)
  return probes.map((probe: Probe, i) => {
    const name = `probes[${i}]`
    const { prompt, expect, forbid, group } = checkOptions(probe, name, ['prompt', 'expect', 'forbid', 'group'])
    if (typeof prompt === 'string') checkString(`${name}.prompt`, prompt)
    else checkMessages(prompt, `${name}.prompt`)
    if (group !== undefined) checkString(`${name}.group`, group)
    checkExpectation(`${name}.expect`, expect)
    checkExpectation(`${name}.forbid`, forbid)
    return probe
  })
}

function checkExpectation(name: string, value: unknown): void {
  if (value === undefined || isRegExp(value)) return
  if (typeof value !== 'string') throw wrongType('a text or a RegExp', name, value)
  if (value === '') throw wrongValue('a text or a RegExp', name, value)
}

/** Asks each probe, greedily, in a conversation of its own. */
export async function answerProbes(
  model: Qwen3Nvfp4Model,
  tokenizer: Tokenizer,
  probes: readonly Probe[],
  maxTokens: number,
): Promise<ProbeAnswer[]> {
  const answers: ProbeAnswer[] = []
  for (const probe of probes) {
    const { prompt, expect, forbid } = probe
    const messages: readonly ChatMessage[] = typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt
    const ids = tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true })
    let text = ''
    for await (const piece of generateText(model, tokenizer, ids, { maxTokens, maxRepeats: 0 })) text += piece.text
    const isJudged = expect !== undefined || forbid !== undefined
    const holds = (expect === undefined || matches(text, expect)) && !(forbid !== undefined && matches(text, forbid))
    answers.push(isJudged ? { ...probe, text, holds } : { ...probe, text })
  }
  return answers
}

/** Of each group, the share of its judged answers that hold. */
export function sharesOf(answers: readonly ProbeAnswer[]): Record<string, number> {
  const judged = answers.filter(({ holds }) => holds !== undefined)
  const groups = new Set(judged.map(({ group = 'all' }) => group))
  return Object.fromEntries(
    [...groups].map((name) => {
      const own = judged.filter(({ group = 'all' }) => group === name)
      return [name, own.filter(({ holds }) => holds).length / own.length]
    }),
  )
}

const isRegExp = (value: unknown): value is RegExp => Object.prototype.toString.call(value) === '[object RegExp]'

const matches = (text: string, wanted: Expectation): boolean =>
  isRegExp(wanted) ? text.search(wanted) >= 0 : text.includes(wanted)
