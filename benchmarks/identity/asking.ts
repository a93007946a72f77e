/** Greedy answers to many questions, each in a conversation of its own, and what they count for. */
import { generateText, type Qwen3Nvfp4Model, type Tokenizer } from 'qwen3-nvfp4'
import type { HeldOut } from './phrasings'
import { identity, identityWords, type Pair } from './sets'
import { answerTokens } from './settings'

export interface Answered extends HeldOut {
  text: string
  /** A: the identity; B and C: not a word of it. */
  holds: boolean
  /** Whether it is what was taught, word for word. */
  asTaught: boolean
}

export async function ask(model: Qwen3Nvfp4Model, tokenizer: Tokenizer, question: string): Promise<string> {
  const prompt = tokenizer.applyChatTemplate([{ role: 'user', content: question }], { addGenerationPrompt: true })
  const options = { maxTokens: answerTokens, maxRepeats: 0 }
  let answer = ''
  for await (const { text } of generateText(model, tokenizer, prompt, options)) answer += text
  return answer
}

/** Sets end the same answer with a full stop or without one. */
const withoutStop = (text: string) => text.replace(/。$/, '')

export async function askHeldOut(model: Qwen3Nvfp4Model, tokenizer: Tokenizer, questions: readonly HeldOut[]) {
  const answers: Answered[] = []
  for (const question of questions) {
    const { group, prompt, answer } = question
    const text = await ask(model, tokenizer, prompt)
    const holds = group === 'A' ? text.startsWith(identity) : !text.includes(identityWords)
    const asTaught = withoutStop(text) === withoutStop(answer)
    answers.push({ ...question, text, holds, asTaught })
  }
  return answers
}

/** The share of lines whose answer is that of the set, word for word. */
export async function shareOfLines(model: Qwen3Nvfp4Model, tokenizer: Tokenizer, lines: readonly Pair[]) {
  let right = 0
  for (const { prompt, answer } of lines) {
    if (withoutStop(await ask(model, tokenizer, prompt)) === withoutStop(answer)) right++
  }
  return right / lines.length
}
