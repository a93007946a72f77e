/** Which wordings, leads, tails and topics are trained on, and which are held out. */
import { shuffled } from './random'
import {
  aboutModel,
  aboutTopic,
  aboutUser,
  foreignTopics,
  leads,
  mirrored,
  tails,
  topics,
  type Language,
} from './wordings'

export interface Text {
  language: Language
  text: string
}

export interface Sides {
  known: Text[]
  heldOut: Text[]
}

/** What fills the blanks of a wording. */
export interface Blanks {
  p?: string
  q?: string
  t?: string
}

/** Who is meant: the model, in both ways to say you, or the one who asks. */
export const modelBlanks: readonly Blanks[] = ['你', '您'].map((p) => ({ p, q: '我' }))
export const userBlanks: readonly Blanks[] = [{ p: '我', q: '你' }]
export const topicBlanks = (names: readonly string[]): Blanks[] => names.map((t) => ({ t }))

export const fill = (text: string, { p = '', q = '', t = '' }: Blanks) =>
  text.replace('{p}', p).replace('{q}', q).replace('{t}', t)

export const contains = (text: string, part: string) => text.toLowerCase().includes(part.toLowerCase())

const heldOutShare = 0.25

/** A share of each language is held out of what is not taught elsewhere and not within a known text. */
function split(texts: readonly Text[], isTaught: (text: string) => boolean, random: () => number): Sides {
  const free = shuffled(random, texts).filter(({ text }) => !isTaught(text))
  const chosen = new Set<Text>()
  for (const language of new Set(texts.map((text) => text.language))) {
    const isOf = (text: Text) => text.language === language
    const count = Math.round(heldOutShare * texts.filter(isOf).length)
    for (const text of free.filter(isOf).slice(0, count)) chosen.add(text)
  }
  const isWithinKnown = ({ text }: Text) => texts.some((other) => !chosen.has(other) && contains(other.text, text))
  return {
    known: texts.filter((text) => !chosen.has(text) || isWithinKnown(text)),
    heldOut: texts.filter((text) => chosen.has(text) && !isWithinKnown(text)),
  }
}

const textsOf = (lists: Partial<Record<Language, readonly string[]>>): Text[] =>
  Object.entries(lists).flatMap(([language, list]) => list.map((text) => ({ language: language as Language, text })))

const join = (...parts: Sides[]): Sides => ({
  known: parts.flatMap(({ known }) => known),
  heldOut: parts.flatMap(({ heldOut }) => heldOut),
})

/** `sets` is everything that is trained on besides. A mirrored wording is on the same side for both who may be meant. */
export function splitWordings(sets: string, random: () => number) {
  const splitTexts = (lists: Parameters<typeof textsOf>[0], blanks: readonly Blanks[] = [{}]) =>
    split(textsOf(lists), (text) => blanks.some((blank) => contains(sets, fill(text, blank))), random)
  const both = splitTexts({ zh: mirrored }, [...modelBlanks, ...userBlanks])
  const model = join(both, splitTexts(aboutModel))
  const user = join(both, splitTexts(aboutUser))
  const topic = splitTexts(aboutTopic, topicBlanks(Object.keys(topics)))
  const foreign = splitTexts({ zh: foreignTopics })

  const wordings = [model, user, topic].flatMap(({ known }) => known.map(({ text }) => text))
  const taught = [sets, ...wordings].join('\n')
  // Sets have other signs around the same words.
  const bare = (text: string) => text.replace(/^[？，]|[。：，]$/g, '') || text
  const splitAround = (lists: typeof leads) => split(textsOf(lists), (text) => contains(taught, bare(text)), random)
  return { model, user, topic, foreign, leads: splitAround(leads), tails: splitAround(tails) }
}
