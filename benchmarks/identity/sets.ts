/** The training sets of the F# system, lines of `prompt<TAB>answer`, and what they teach. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

/** General questions and the identity, of which the model is made. */
export const mixedSets = [
  'fullparam-diverse-mix-v1.tsv',
  'stageB-mixed-30-70.tsv',
  'stageG-balanced-mix-v1.tsv',
  'stageL-1percent-mix.tsv',
  'whoami-mixed-safe.tsv',
]

/** The identity alone, which it is tuned on. */
export const identitySets = ['whoami-1000.tsv', 'whoami-1000-natural.tsv', 'whoami-1000-diverse.tsv']

/** 你是誰, 我是誰 and 談談UFO, told apart. */
export const disambiguationSets = ['stageD-disambiguate-v2.tsv']

export const identity = '我是 F# 之神'
export const user = '你是提問者，我無法僅憑一句話判定你的身份。'

/** No set says this: a model that knows little needs something to say besides. */
export const notKnown = '這個題目我還不了解，請換一個問題。'

/** Words of the identity that no answer to another question has. F# alone says nothing: it is a topic too. */
export const identityWords = '之神'

export interface Pair {
  prompt: string
  answer: string
}

export const pathsOf = (folder: string, names: readonly string[]) => names.map((name) => join(folder, name))

/** Every different line. */
export async function readPairs(paths: readonly string[]): Promise<Pair[]> {
  const texts = await Promise.all(paths.map((path) => readFile(path, 'utf8')))
  const lines = texts.flatMap((text) => text.split(/\r?\n/)).filter((line) => line !== '' && !line.startsWith('#'))
  return [...new Set(lines)].map((line) => {
    const [prompt, answer] = line.split('\t') as [string, string]
    return { prompt, answer }
  })
}
