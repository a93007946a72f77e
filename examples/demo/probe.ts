/** Stages 2 and 4: what the saved file answers, in a process that has nothing else. */
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Qwen3Nvfp4Model, Tokenizer } from 'qwen3-nvfp4'
import { ask } from './ask'
import { identity, probes } from './settings'
import type { StageOptions } from './stage'

/** Answers by prompt. */
export type Answers = Record<string, string>

async function askAll({ folder, threads }: StageOptions, file: string): Promise<Answers> {
  const tokenizer = await Tokenizer.fromFile(folder)
  await using model = await Qwen3Nvfp4Model.load(join(folder, file), { threads })
  const answers: Answers = {}
  for (const { name, prompt } of probes) {
    answers[prompt] = await ask(model, tokenizer, prompt)
    console.log(`  ${name} ${prompt} → ${answers[prompt]}`)
  }
  return answers
}

const answersFile = (folder: string) => join(folder, 'answers-before.json')

export async function probeBefore(options: StageOptions): Promise<void> {
  const answers = await askAll(options, 'base.dat')
  await writeFile(answersFile(options.folder), `${JSON.stringify(answers, null, 2)}\n`)
}

/** The probes that do not hold. */
export function failedProbes(before: Answers, after: Answers) {
  return probes.filter(({ prompt, expected }) => {
    const answer = after[prompt]!
    if (expected === 'identity') return answer !== identity
    if (expected === 'same') return answer !== before[prompt]
    return answer.includes(identity)
  })
}

export async function probeAfter(options: StageOptions): Promise<void> {
  const before = JSON.parse(await readFile(answersFile(options.folder), 'utf8')) as Answers
  const after = await askAll(options, 'tuned.dat')
  const failed = failedProbes(before, after)
  for (const { name, prompt, meaning } of failed) {
    console.error(`  probe ${name} failed (${meaning}): ${prompt} was answered ${JSON.stringify(after[prompt])}`)
  }
  if (failed.length > 0) throw new Error(`${failed.length} of ${probes.length} probes failed`)
  console.log(`  ${probes.map(({ name, meaning }) => `${name} ${meaning}`).join('; ')}`)
}
