/**
 * Sentences to tune on, sentences that choose between settings, and sentences to ask that are held out of both: such a one has a
 * wording, a topic, or both a lead and a tail that no line of the training contains.
 */
import { mulberry32 } from '../support/mulberry32'
import { mirroredFrames, modelFrames, modelPersons, topicFrames, userFrames, userPersons, type Frames } from './frames'
import { byFrame, evenly, questions, type Asked, type Phrasing, type Question } from './questions'
import { namesOf, SentenceMaker, type Sentence } from './sentences'
import { fill, modelBlanks, reserved, splitWordings, topicBlanks, userBlanks, type Text } from './sides'
import { topics, type Blanks, type Language } from './wordings'

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

export interface Phrasings {
  tuning: Phrasing[]
  validation: HeldOut[]
  heldOut: HeldOut[]
}

type Wordings = ReturnType<typeof splitWordings>

const plain = ({ group, prompt, answer }: Phrasing): Phrasing => ({ group, prompt, answer })

/** What the three groups ask: who the model is, who the user is, topics that the sets teach, and others. */
function makeAsked({ identity, user, notKnown }: PhrasingOptions) {
  const a: Asked = { group: 'A', blanks: modelBlanks, answerTo: () => identity }
  const c: Asked = { group: 'C', blanks: userBlanks, answerTo: () => user }
  const b: Asked = {
    group: 'B',
    blanks: topicBlanks(Object.keys(topics)),
    answerTo: (topic) => topics[topic!]!,
  }
  const foreign = (texts: readonly Text[]): Asked => ({
    group: 'B',
    blanks: topicBlanks(namesOf(texts)),
    answerTo: () => notKnown,
  })
  return { a, b, c, foreign }
}

type AllAsked = ReturnType<typeof makeAsked>

const inAll = (asked: Asked) => ({ zh: asked, en: asked, ja: asked, ko: asked })
const inEach = (asked: Asked, persons: Record<Language, readonly Blanks[]>): Record<Language, Asked> => ({
  zh: { ...asked, blanks: persons.zh },
  en: { ...asked, blanks: persons.en },
  ja: { ...asked, blanks: persons.ja },
  ko: { ...asked, blanks: persons.ko },
})
const both = (first: Frames, second: Frames): Frames => ({
  zh: [...first.zh, ...second.zh],
  en: [...first.en, ...second.en],
  ja: [...first.ja, ...second.ja],
  ko: [...first.ko, ...second.ko],
})

/** Whether a question contains no wording that is not trained on. */
function makeIsKnown(sides: Wordings, { a, c }: AllAsked) {
  const lowerCase = (texts: readonly Text[]) => texts.map(({ text }) => text.toLowerCase())
  const others = [...questions(a, reserved(sides.model)), ...questions(c, reserved(sides.user))]
  const wordings = lowerCase(others.map(({ language, prompt }) => ({ language, text: prompt })))
  const aboutTopic = lowerCase(reserved(sides.topic))
  return ({ prompt, topic }: Question): boolean => {
    const text = prompt.toLowerCase()
    if (wordings.some((wording) => text.includes(wording))) return false
    const t = topic?.toLowerCase()
    return t === undefined || !aboutTopic.some((wording) => text.includes(fill(wording, { t })))
  }
}

function makeTuning(options: PhrasingOptions, sides: Wordings, asked: AllAsked, random: () => number): Phrasing[] {
  const { count, identityLines } = options
  const { a, b, c, foreign } = asked
  const maker = new SentenceMaker(sides, random)
  const isKnown = makeIsKnown(sides, asked)
  const part = (share: number) => Math.round(share * count)
  const listed = (texts: readonly Question[], share: number) =>
    maker.make(evenly(random, texts), 'tuning', part(share), isKnown)
  const framed = (frames: Partial<Frames>, askedIn: Record<Language, Asked>, share: number) =>
    maker.make(byFrame(random, frames, askedIn), 'tuning', part(share), isKnown)
  const aboutModel = questions(a, sides.model.known)
  const contrast = (texts: readonly Question[], share: number) =>
    maker.contrast(identityLines, aboutModel, texts, part(share)).filter(isKnown)

  const aboutUser = questions(c, sides.user.known)
  const knownForeign = foreign([...sides.foreign.known, ...sides.moreForeign])
  const aboutTaught = questions(b, sides.topic.known)
  const aboutForeign = questions(knownForeign, sides.topic.known)
  return [
    ...listed(aboutModel, 0.3),
    ...framed(both(mirroredFrames, modelFrames), inEach(a, modelPersons), 0.7),
    ...listed(aboutTaught, 0.25),
    ...framed(topicFrames, inAll(b), 0.1),
    ...listed(aboutForeign, 0.3),
    ...framed(topicFrames, inAll(knownForeign), 0.25),
    ...contrast([...aboutTaught, ...aboutForeign], 0.1),
    ...listed(aboutUser, 0.3),
    ...framed(both(mirroredFrames, userFrames), inEach(c, userPersons), 0.6),
    ...contrast(aboutUser, 0.1),
  ].map(plain)
}

/** What of a sentence must not have been seen. */
const newParts: Record<HeldOut['kind'], (sentence: Sentence) => string[]> = {
  sentence: ({ lead, tail }) => [lead, tail],
  wording: ({ wording }) => [wording],
  topic: ({ topic }) => [topic!],
}

/** To tune on as many of each group as asked, and 100 of each group for validation, and 100 held out. */
export function makePhrasings(options: PhrasingOptions): Phrasings {
  const { seed, sets } = options
  const sides = splitWordings(sets, mulberry32(seed))
  const asked = makeAsked(options)
  const { a, b, c, foreign } = asked
  const tuning = makeTuning(options, sides, asked, mulberry32(seed + 1e6))

  const taught = [sets, ...tuning.map(({ prompt }) => prompt)].join('\n').toLowerCase()
  const isNew = (one: Sentence, kind: HeldOut['kind']) =>
    [one.prompt, ...newParts[kind](one)].every((text) => !taught.includes(text.toLowerCase()))
  const holdOut = (side: 'validation' | 'heldOut', random: () => number): HeldOut[] => {
    const maker = new SentenceMaker(sides, random)
    const ask = (kind: HeldOut['kind'], texts: readonly Question[], wanted: number): HeldOut[] =>
      maker
        .make(evenly(random, texts), kind === 'sentence' ? side : 'known', wanted, (one) => isNew(one, kind))
        .map((one) => ({ ...plain(one), kind }))
    return [
      ...ask('sentence', questions(a, sides.model.known), 50),
      ...ask('wording', questions(a, sides.model[side]), 50),
      ...ask('sentence', questions(b, sides.topic.known), 34),
      ...ask('wording', questions(b, sides.topic[side]), 33),
      ...ask('topic', questions(foreign(sides.foreign[side]), sides.topic.known), 33),
      ...ask('sentence', questions(c, sides.user.known), 50),
      ...ask('wording', questions(c, sides.user[side]), 50),
    ]
  }
  return {
    tuning,
    validation: holdOut('validation', mulberry32(seed + 2e6)),
    heldOut: holdOut('heldOut', mulberry32(seed + 3e6)),
  }
}
