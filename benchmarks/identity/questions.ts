/** Questions to draw sentences from: wordings whose blanks are filled, with nothing around them. */
import { wordingsOf, type Frames } from './frames'
import { pick, shuffled } from './random'
import { fill, type Text } from './sides'
import type { Blanks, Language } from './wordings'

/** A: who the model is. B: something else. C: who the user is. */
export type Group = 'A' | 'B' | 'C'

export interface Phrasing {
  group: Group
  prompt: string
  /** What is taught. */
  answer: string
}

export type Question = Phrasing & { language: Language; topic?: string }

export interface Asked {
  group: Group
  /** What may be meant, and the answer to it. */
  blanks: readonly Blanks[]
  answerTo: (topic?: string) => string
}

/** Every wording with its blanks filled in every way. */
export function questions({ group, blanks, answerTo }: Asked, texts: readonly Text[]): Question[] {
  const filled = texts.flatMap(({ language, text }) =>
    blanks.map((blank) => ({ group, language, topic: blank.t, prompt: fill(text, blank), answer: answerTo(blank.t) })),
  )
  return [...new Map<string, Question>(filled.map((question) => [question.prompt, question])).values()]
}

/** All of them in turn, without an end, in another order each time. */
export function* evenly(random: () => number, asked: readonly Question[]): Generator<Question, void> {
  for (;;) yield* shuffled(random, asked)
}

/** How often a language has its turn. */
const turns: readonly Language[] = ['zh', 'zh', 'zh', 'zh', 'zh', 'zh', 'en', 'en', 'en', 'ja', 'ko']

/** Those of the frames without an end. A frame has as many turns as any other of its language, however many wordings it has. */
export function* byFrame(
  random: () => number,
  frames: Partial<Frames>,
  askedIn: Record<Language, Asked>,
): Generator<Question, void> {
  const wordings = new Map(
    Object.entries(frames).map(([language, list]) => [language, list.map((one) => wordingsOf([one]))]),
  )
  const languages = turns.filter((language) => wordings.has(language))
  for (;;) {
    const language = pick(random, languages)
    const { group, blanks, answerTo } = askedIn[language]
    const blank = pick(random, blanks)
    const prompt = fill(pick(random, pick(random, wordings.get(language)!)), blank)
    yield { group, language, topic: blank.t, prompt, answer: answerTo(blank.t) }
  }
}
