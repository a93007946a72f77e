/**
 * Makes training data that teaches an identity: many natural ways to ask who someone is, each with the same answer.
 *
 *   tsx examples/make-identity-data.ts --output identity.tsv --target '我是 F# 之神' [--count 1000] [--seed 0]
 *     [--held-out probes.tsv] [--held-out-count 100]
 *
 * The lines are `prompt<TAB>target`, no prompt twice; those of --held-out are not among those of --output, so they show
 * whether a model learned the identity or the lines.
 */
import { writeFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { randomSource } from './demo/text'

/** What leads to the question. */
const occasions = [
  '我想先認識你',
  '我剛進來',
  '在開始任務前',
  '在正式討論之前',
  '我想先確認對話對象',
  '我只想先確認身份',
  '這是我第一次用這個系統',
  '我第一次跟你聊天',
  '我想先建立一個基本認知',
  '我在測試你的回應穩定性',
  '我先做個簡單提問',
  '先別談其他主題',
  '後面再聊細節',
]

const questions = [
  '你是誰',
  '請問你是誰',
  '你到底是誰',
  '你叫什麼名字',
  '先說你是誰',
  '先報上名號',
  '先自我介紹一下',
  '你可以先介紹自己嗎',
  '先讓我知道你是誰',
  '我好奇你的身份',
  '我先問最基本的：你是誰',
  '開聊前先確認一下你是誰',
  'Who are you',
  'あなたは誰ですか',
]

/** How the answer is wanted. */
const manners = [
  '簡單說就行',
  '短短回答即可',
  '自然回答就好',
  '直球回答',
  '不用繞圈',
  '不用太正式',
  '語氣輕鬆一點',
  '白話一點',
  '先一句話回我',
  '先給我核心答案',
  '像朋友聊天那樣回答',
]

const forms: ((occasion: string, question: string, manner: string) => string)[] = [
  (_, question) => question,
  (_, question) => `${question}？`,
  (_, question, manner) => `${question}？${manner}。`,
  (_, question, manner) => `${manner}，先回答這題：${question}。`,
  (occasion, question) => `${occasion}，我就想知道：${question}？`,
  (occasion, question) => `${question}？${occasion}。`,
  (occasion, question, manner) => `${occasion}。${question}，${manner}。`,
  (occasion, question, manner) => `${occasion}。先一句話回答：${question}，${manner}。`,
  (occasion, question, manner) => `${question}？${occasion}，${manner}。`,
]

/** Every prompt once, in an order that the seed decides. */
function shuffledPrompts(seed: number): string[] {
  const prompts = [
    ...new Set(
      forms.flatMap((form) =>
        occasions.flatMap((occasion) =>
          questions.flatMap((question) => manners.map((manner) => form(occasion, question, manner))),
        ),
      ),
    ),
  ]
  const random = randomSource(seed)
  for (let i = prompts.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1))
    ;[prompts[i], prompts[j]] = [prompts[j]!, prompts[i]!]
  }
  return prompts
}

function usage(problem: string): never {
  console.error(problem)
  console.error(
    'usage: tsx examples/make-identity-data.ts --output <file.tsv> --target <answer> [--count 1000] [--seed 0] ' +
      '[--held-out <file.tsv>] [--held-out-count 100]',
  )
  process.exit(2)
}

function readArguments() {
  const text = { type: 'string' } as const
  try {
    const options = { output: text, target: text, count: text, seed: text, 'held-out': text, 'held-out-count': text }
    return parseArgs({ options }).values
  } catch (error) {
    return usage((error as Error).message)
  }
}

function wholeNumber(name: string, value: string): number {
  return /^\d+$/.test(value) ? Number(value) : usage(`--${name} must be a whole number, not ${value}`)
}

const { output, target, 'held-out': heldOut, ...given } = readArguments()
if (!output || !target?.trim()) usage('--output and --target are needed')
if (/[\t\r\n]/.test(target)) usage('--target must be one line without tabs')
const count = wholeNumber('count', given.count ?? '1000')
const heldOutCount = heldOut ? wholeNumber('held-out-count', given['held-out-count'] ?? '100') : 0
const prompts = shuffledPrompts(wholeNumber('seed', given.seed ?? '0'))
if (count < 1 || count + heldOutCount > prompts.length) {
  usage(`--count and --held-out-count must be 1 to ${prompts.length} together, the number of different prompts`)
}

async function write(file: string, chosen: readonly string[]): Promise<void> {
  const lines = ['# format: prompt<TAB>target', ...chosen.map((prompt) => `${prompt}\t${target}`)]
  await writeFile(file, `${lines.join('\n')}\n`)
  console.log(`wrote ${file}, ${chosen.length} pairs`)
}

await write(output, prompts.slice(0, count))
if (heldOut) await write(heldOut, prompts.slice(count, count + heldOutCount))
