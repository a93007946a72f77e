/** Stage 1: a tiny Qwen3 learns to speak, from random 4-bit weights, with every state packed. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Qwen3Nvfp4Model, Tokenizer, readQwen3Config } from 'qwen3-nvfp4'
import { writeByteTokenizer } from '../support/make-byte-tokenizer'
import { initialStddev, modelConfig, packed, pretraining, vocabSize } from './settings'
import type { StageOptions } from './stage'
import { Batches, learnTokenizer, pick, randomSource, readText } from './text'
import { mebibytes, train } from './train'

export async function pretrain({ folder, seed, threads }: StageOptions): Promise<void> {
  const text = await readText()
  const made = learnTokenizer(text, vocabSize)
  await writeByteTokenizer(folder, made)
  const tokenizer = await Tokenizer.fromFile(folder)

  const json = { ...modelConfig, vocab_size: made.vocabSize, eos_token_id: tokenizer.eosTokenId }
  const configFile = join(folder, 'config.json')
  await writeFile(configFile, `${JSON.stringify(json, null, 2)}\n`)
  const config = await readQwen3Config(configFile)

  await using model = await Qwen3Nvfp4Model.initialize(config, { seed, threads, stddev: initialStddev })
  console.log(`  ${model.parameterCount} parameters on ${model.device} (${model.isa}, ${model.threads} threads)`)

  await using optimizer = model.createOptimizer({ ...packed, seed })
  const random = randomSource(seed)
  const batches = new Batches(tokenizer, text.corpus, random)
  const nextPair = () => pick(random, text.chat)
  const { loss, seconds } = await train(model, optimizer, pretraining, () => batches.next(pretraining, nextPair))
  console.log(`  loss ${loss.toFixed(3)} after ${seconds.toFixed(0)} s`)

  const { weights, scales, moments } = await model.memory()
  const bits = (8 * (weights + scales + moments)) / model.parameterCount
  console.log(
    `  weights, scales and both moments: ${mebibytes(weights + scales + moments)}, ${bits.toFixed(1)} bits a parameter`,
  )
  const { bytes } = await model.saveDat(join(folder, 'base.dat'))
  console.log(`  wrote base.dat, ${mebibytes(bytes)}`)
}
