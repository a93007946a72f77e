/** Which wordings, leads, tails and topics are trained on, which choose between settings, and which are held out of both. */
import { shuffled } from './random'
import { moreForeignTopics, moreLeads, moreTails } from './surroundings'
import {
  aboutModel,
  aboutTopic,
  aboutUser,
  foreignTopics,
  leads,
  mirrored,
  tails,
  topics,
  type Blanks,
  type Language,
} from './wordings'

export interface Text {
  language: Language
  text: string
}

export interface Sides {
  known: Text[]
  validation: Text[]
  heldOut: Text[]
}

/** Who is meant: the model, in both ways to say you, or the one who asks. */
export const modelBlanks: readonly Blanks[] = ['你', '您'].map((p) => ({ p, q: '我' }))
export const userBlanks: readonly Blanks[] = [{ p: '我', q: '你' }]
export const topicBlanks = (names: readonly string[]): Blanks[] => names.map((t) => ({ t }))

export const fill = (text: string, blanks: Blanks) =>
  text.replace(/\{(\w+)\}/g, (blank, name: string) => blanks[name] ?? blank)

export const contains = (text: string, part: string) => text.toLowerCase().includes(part.toLowerCase())

const heldOutShare = 0.25
/** Of the others. */
const validationShare = 0.2

/** Takes that share of each language out of what is free, but for what is within another text that stays. */
function takeOut(texts: readonly Text[], free: readonly Text[], share: number): { stay: Text[]; out: Text[] } {
  const chosen = new Set<Text>()
  for (const language of new Set(texts.map((text) => text.language))) {
    const isOf = (text: Text) => text.language === language
    const count = Math.round(share * texts.filter(isOf).length)
    for (const text of free.filter(isOf).slice(0, count)) chosen.add(text)
  }
  const isWithinKnown = ({ text }: Text) => texts.some((other) => !chosen.has(other) && contains(other.text, text))
  const isOut = (text: Text) => chosen.has(text) && !isWithinKnown(text)
  return { stay: texts.filter((text) => !isOut(text)), out: texts.filter(isOut) }
}

/** Holds out of what is not taught elsewhere. */
function split(texts: readonly Text[], isTaught: (text: string) => boolean, random: () => number): Sides {
  const free = shuffled(random, texts).filter(({ text }) => !isTaught(text))
  const { stay, out: heldOut } = takeOut(texts, free, heldOutShare)
  const others = free.filter((text) => stay.includes(text)).reverse()
  const { stay: known, out: validation } = takeOut(stay, others, validationShare)
  return { known, validation, heldOut }
}

const textsOf = (lists: Partial<Record<Language, readonly string[]>>): Text[] =>
  Object.entries(lists).flatMap(([language, list]) => list.map((text) => ({ language: language as Language, text })))

const join = (...parts: Sides[]): Sides => ({
  known: parts.flatMap(({ known }) => known),
  validation: parts.flatMap(({ validation }) => validation),
  heldOut: parts.flatMap(({ heldOut }) => heldOut),
})

/** What is not trained on. */
export const reserved = ({ validation, heldOut }: Sides): Text[] => [...validation, ...heldOut]

/** Those texts that neither contain what is not trained on nor are within it. */
const apart = (texts: readonly Text[], sides: Sides, bare: (text: string) => string = (text) => text): Text[] => {
  const others = reserved(sides).map(({ text }) => bare(text))
  return texts.filter(({ text }) => !others.some((other) => contains(text, other) || contains(other, bare(text))))
}

/** `sets` is everything that is trained on besides. A mirrored wording is on the same side for both who may be meant. */
export function splitWordings(sets: string, random: () => number) {
  const lowerCase = sets.toLowerCase()
  const isInSets = (text: string) => lowerCase.includes(text.toLowerCase())
  const splitTexts = (lists: Parameters<typeof textsOf>[0], blanks: readonly Blanks[] = [{}]) =>
    split(textsOf(lists), (text) => blanks.some((blank) => isInSets(fill(text, blank))), random)
  const both = splitTexts({ zh: mirrored }, [...modelBlanks, ...userBlanks])
  const model = join(both, splitTexts(aboutModel))
  const user = join(both, splitTexts(aboutUser))
  const topic = splitTexts(aboutTopic, topicBlanks(Object.keys(topics)))
  const foreign = splitTexts({ zh: foreignTopics })

  const wordings = [model, user, topic].flatMap(({ known }) => known.map(({ text }) => text))
  const taught = [sets, ...wordings].join('\n')
  // Sets have other signs around the same words.
  const bare = (text: string) => text.replace(/^[？，]|[。：，]$/g, '') || text
  const splitAround = (lists: typeof leads, more: typeof leads) => {
    const sides = split(textsOf(lists), (text) => contains(taught, bare(text)), random)
    return { ...sides, tuning: [...sides.known, ...apart(textsOf(more), sides, bare)] }
  }
  return {
    ...{ model, user, topic, foreign },
    moreForeign: apart(textsOf({ zh: moreForeignTopics }), foreign),
    leads: splitAround(leads, moreLeads),
    tails: splitAround(tails, moreTails),
  }
}
