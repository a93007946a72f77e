/** Sentences: questions between a lead and a tail. */
import type { Question } from './questions'
import { pick, shuffled } from './random'
import type { Sides, Text } from './sides'

export type Sentence = Question & { wording: string; lead: string; tail: string }
/** What stands around questions; more of it is for tuning alone. */
export type Around = Sides & { tuning: Text[] }

export const namesOf = (texts: readonly Text[]) => texts.map(({ text }) => text)

export class SentenceMaker {
  readonly #leads: Around
  readonly #tails: Around
  readonly #random: () => number

  constructor({ leads, tails }: { leads: Around; tails: Around }, random: () => number) {
    this.#leads = leads
    this.#tails = tails
    this.#random = random
  }

  /** As many different sentences. Some lack a lead or a tail, or have two leads; one whose surroundings are new has one of each. */
  make(asked: Iterable<Question>, side: keyof Around, wanted: number, isAllowed: (sentence: Sentence) => boolean) {
    const found = new Map<string, Sentence>()
    let tries = 0
    for (const question of asked) {
      const sentence = this.#around(question, side)
      if (isAllowed(sentence)) found.set(sentence.prompt, sentence)
      if (found.size === wanted) break
      if (++tries === 100 * wanted) throw new RangeError(`Expected ${wanted} sentences but found ${found.size}`)
    }
    return [...found.values()]
  }

  #around(question: Question, side: keyof Around): Sentence {
    const { language, prompt: wording } = question
    const isOptional = side === 'tuning' || side === 'known'
    const choose = (texts: Around): string => {
      const names = namesOf(texts[side].filter((text) => text.language === language))
      return names.length === 0 || (isOptional && this.#random() < 0.4) ? '' : pick(this.#random, names)
    }
    const [lead, tail] = [choose(this.#leads), choose(this.#tails)]
    const before = isOptional && lead !== '' && this.#random() < 0.4 ? choose(this.#leads) : ''
    const parts = [before, lead, `${wording}${tail}`].filter((part) => part !== '')
    return { ...question, wording, lead, tail, prompt: parts.join(language === 'en' || language === 'ko' ? ' ' : '') }
  }

  /** Lines of the sets with another question in place of `replaced`, so that nothing around it tells which one it is. */
  contrast(lines: readonly string[], replaced: readonly Question[], asked: readonly Question[], wanted: number) {
    const isChinese = ({ language }: Question) => language === 'zh'
    const prompts = replaced.filter(isChinese).map(({ prompt }) => prompt)
    const others = asked.filter(isChinese)
    const found = new Map<string, Question>()
    for (const line of shuffled(this.#random, lines)) {
      const here = prompts.filter((prompt) => line.includes(prompt)).sort((a, b) => b.length - a.length)[0]
      if (here === undefined) continue
      const question = pick(this.#random, others)
      const prompt = line.replace(here, question.prompt)
      found.set(prompt, { ...question, prompt })
      if (found.size === wanted) break
    }
    return [...found.values()]
  }
}
