/** Stage 3: the base model gets an identity, while most of what it reads repeats what it said before. */
import { join } from 'node:path'
import { Qwen3Nvfp4Model, Tokenizer } from 'qwen3-nvfp4'
import { ask } from './ask'
import { identity, packed, tuning } from './settings'
import type { StageOptions } from './stage'
import { Batches, pick, randomSource, readText, type Pair } from './text'
import { mebibytes, train } from './train'

export async function tune({ folder, seed, threads }: StageOptions): Promise<void> {
  const { corpus, chat, tune: pairs } = await readText()
  const tokenizer = await Tokenizer.fromFile(folder)
  await using model = await Qwen3Nvfp4Model.load(join(folder, 'base.dat'), { threads })
  await using optimizer = model.createOptimizer({ ...packed, seed })

  const taught = pairs.filter(({ answer }) => answer === identity)
  const nearby = pairs.filter(({ answer }) => answer !== identity)
  const renamed = new Set(taught.map(({ prompt }) => prompt))
  const others = chat.filter(({ prompt }) => !renamed.has(prompt))
  const random = randomSource(seed)
  const batches = new Batches(tokenizer, corpus, random)
  // Replay is half prompts that look like those of the identity, half everything else that the model was taught.
  const nextPair = () => {
    if (random() >= tuning.replayShare) return pick(random, taught)
    return pick(random, random() < 0.5 ? nearby : others)
  }

  let checks = 0
  const isLearned = async (step: number) => {
    if (step % tuning.checkEvery !== 0) return false
    checks = (await allRight(model, tokenizer, pairs)) ? checks + 1 : 0
    return checks === tuning.checksInARow
  }
  const { steps, seconds } = await train(model, optimizer, tuning, () => batches.next(tuning, nextPair), isLearned)
  const result = checks === tuning.checksInARow ? `${pairs.length} of ${pairs.length} answers right` : 'the last step'
  console.log(`  ${steps} steps in ${seconds.toFixed(0)} s, until ${result}`)
  const { bytes } = await model.saveDat(join(folder, 'tuned.dat'))
  console.log(`  wrote tuned.dat, ${mebibytes(bytes)}`)
}

async function allRight(model: Qwen3Nvfp4Model, tokenizer: Tokenizer, pairs: readonly Pair[]): Promise<boolean> {
  for (const { prompt, answer } of pairs) if ((await ask(model, tokenizer, prompt)) !== answer) return false
  return true
}
