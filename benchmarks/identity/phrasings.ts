/**
 * Sentences to tune on, and sentences to ask that are held out: such a one has a wording, a topic, or both a lead and a tail that no
 * line of the training contains.
 */
import { mulberry32 } from '../support/mulberry32'
import { pick, shuffled } from './random'
import { contains, fill, modelBlanks, splitWordings, topicBlanks, userBlanks } from './sides'
import type { Blanks, Sides, Text } from './sides'
import { topics, type Language } from './wordings'

/** A: who the model is. B: something else. C: who the user is. */
export type Group = 'A' | 'B' | 'C'

export interface Phrasing {
  group: Group
  prompt: string
  /** What is taught. */
  answer: string
}

export interface HeldOut extends Phrasing {
  /** What is new: all that stands around the wording, the wording, or the topic. */
  kind: 'sentence' | 'wording' | 'topic'
}

export interface PhrasingOptions {
  seed: number
  /** Prompts of everything that is trained on besides, and those of them that ask for the identity. */
  sets: string
  identityLines: readonly string[]
  identity: string
  /** The answer to who the user is. */
  user: string
  /** The answer to what nothing is known of. */
  notKnown: string
  /** Sentences of each group to tune on. */
  count: number
}

/** A wording whose blanks are filled, with nothing around it. */
type Question = Phrasing & { language: Language; topic?: string }
type Sentence = Question & { wording: string; lead: string; tail: string }

const namesOf = (texts: readonly Text[]) => texts.map(({ text }) => text)

/** Every wording with its blanks filled in every way. */
function questions(
  group: Group,
  texts: readonly Text[],
  blanks: readonly Blanks[],
  answerTo: (topic?: string) => string,
) {
  const filled = texts.flatMap(({ language, text }) =>
    blanks.map((blank) => ({ group, language, topic: blank.t, prompt: fill(text, blank), answer: answerTo(blank.t) })),
  )
  return [...new Map<string, Question>(filled.map((question) => [question.prompt, question])).values()]
}

class SentenceMaker {
  readonly #leads: Sides
  readonly #tails: Sides
  readonly #random: () => number

  constructor({ leads, tails }: { leads: Sides; tails: Sides }, random: () => number) {
    this.#leads = leads
    this.#tails = tails
    this.#random = random
  }

  /** As many different sentences. Known ones lack a lead or a tail in two of five cases, or have two leads; held-out ones have one of each. */
  make(
    asked: readonly Question[],
    around: keyof Sides,
    wanted: number,
    isAllowed: (sentence: Sentence) => boolean = () => true,
  ): Sentence[] {
    const found = new Map<string, Sentence>()
    for (let tries = 0; found.size < wanted; tries++) {
      if (tries === 100) throw new RangeError(`Expected ${wanted} sentences but found ${found.size}`)
      for (const question of shuffled(this.#random, asked).slice(0, wanted - found.size)) {
        const sentence = this.#around(question, around)
        if (isAllowed(sentence)) found.set(sentence.prompt, sentence)
      }
    }
    return [...found.values()]
  }

  #around(question: Question, side: keyof Sides): Sentence {
    const { language, prompt: wording } = question
    const choose = (texts: readonly Text[]) =>
      side === 'known' && this.#random() < 0.4
        ? ''
        : pick(this.#random, namesOf(texts.filter((text) => text.language === language)))
    const [lead, tail] = [choose(this.#leads[side]), choose(this.#tails[side])]
    const before = side === 'known' && lead !== '' && this.#random() < 0.4 ? choose(this.#leads[side]) : ''
    const words = [before, lead, `${wording}${tail}`].filter((part) => part !== '')
    return { ...question, wording, lead, tail, prompt: words.join(language === 'en' || language === 'ko' ? ' ' : '') }
  }

  /** Lines of the sets with another question in place of `replaced`, so that nothing around it tells which one it is. */
  contrast(lines: readonly string[], replaced: readonly Question[], asked: readonly Question[], wanted: number) {
    const isChinese = ({ language }: Question) => language === 'zh'
    const prompts = replaced.filter(isChinese).map(({ prompt }) => prompt)
    const found = new Map<string, Phrasing>()
    for (const line of shuffled(this.#random, lines)) {
      const here = prompts.filter((prompt) => line.includes(prompt)).sort((a, b) => b.length - a.length)[0]
      if (here === undefined) continue
      const { group, prompt, answer } = pick(this.#random, asked.filter(isChinese))
      found.set(line.replace(here, prompt), { group, prompt: line.replace(here, prompt), answer })
      if (found.size === wanted) break
    }
    return [...found.values()]
  }
}

/** What of a sentence must not have been seen. */
const newParts: Record<HeldOut['kind'], (sentence: Sentence) => string[]> = {
  sentence: ({ lead, tail }) => [lead, tail],
  wording: ({ wording }) => [wording],
  topic: ({ topic }) => [topic!],
}

/** To tune on as many of each group as asked, and 100 held out of each. */
export function makePhrasings(options: PhrasingOptions): { tuning: Phrasing[]; heldOut: HeldOut[] } {
  const { seed, sets, identityLines, identity, user, notKnown, count } = options
  const random = mulberry32(seed)
  const sides = splitWordings(sets, random)
  const maker = new SentenceMaker(sides, random)
  const a = (texts: readonly Text[]) => questions('A', texts, modelBlanks, () => identity)
  const c = (texts: readonly Text[]) => questions('C', texts, userBlanks, () => user)
  const named = topicBlanks(Object.keys(topics))
  const b = (texts: readonly Text[]) => questions('B', texts, named, (topic) => topics[topic!]!)
  const foreign = (texts: readonly Text[]) =>
    questions('B', sides.topic.known, topicBlanks(namesOf(texts)), () => notKnown)

  const plain = ({ group, prompt, answer }: Phrasing): Phrasing => ({ group, prompt, answer })
  const whoQuestions = a(sides.model.known)
  const contrast = (asked: readonly Question[]) =>
    maker.contrast(identityLines, whoQuestions, asked, Math.round(count / 3))
  const tuning = [
    ...maker.make(whoQuestions, 'known', count),
    ...maker.make(b(sides.topic.known), 'known', Math.round(count / 2)),
    ...maker.make(foreign(sides.foreign.known), 'known', Math.round(count / 4)),
    ...contrast([...b(sides.topic.known), ...foreign(sides.foreign.known)]),
    ...maker.make(c(sides.user.known), 'known', count),
    ...contrast(c(sides.user.known)),
  ].map(plain)

  const taught = [sets, ...tuning.map(({ prompt }) => prompt)].join('\n')
  const holdOut = (kind: HeldOut['kind'], asked: readonly Question[], wanted: number): HeldOut[] => {
    const isNew = (one: Sentence) => [one.prompt, ...newParts[kind](one)].every((part) => !contains(taught, part))
    const found = maker.make(asked, kind === 'sentence' ? 'heldOut' : 'known', wanted, isNew)
    return found.map((one) => ({ ...plain(one), kind }))
  }
  const heldOut = [
    ...holdOut('sentence', a(sides.model.known), 50),
    ...holdOut('wording', a(sides.model.heldOut), 50),
    ...holdOut('sentence', b(sides.topic.known), 34),
    ...holdOut('wording', b(sides.topic.heldOut), 33),
    ...holdOut('topic', foreign(sides.foreign.heldOut), 33),
    ...holdOut('sentence', c(sides.user.known), 50),
    ...holdOut('wording', c(sides.user.heldOut), 50),
  ]
  return { tuning, heldOut }
}
