/** One arm: `tsx arm.ts ARM PLAN`, PLAN as JSON. Prints what it measured as lines of JSON. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Qwen3Nvfp4Model, readQwen3Config, Tokenizer, Trainer, TrainingData, type TrainResult } from 'qwen3-nvfp4'
import { ask, askHeldOut, shareOfLines } from './asking'
import type { HeldOut } from './phrasings'
import { disambiguationSets, identitySets, mixedSets, pathsOf, type Pair } from './sets'
import { arms, sizes, validations, type Plan } from './settings'
import type { AskedLine, QuestionSet, TrainedLine } from './table'

const [name, json] = process.argv.slice(2) as [string, string]
const plan = JSON.parse(json) as Plan
const { folder, device, seed, mixture } = plan
const { optimizer } = arms[name]!
const { stddev } = sizes[plan.size]!
const print = (line: TrainedLine | AskedLine): void => console.log(JSON.stringify(line))

const readJson = async <T>(file: string): Promise<T> => JSON.parse(await readFile(join(folder, file), 'utf8')) as T

/** Trains one stage and returns the `.dat` of its checkpoint. */
async function train(
  stage: 'scratch' | 'tuning',
  model: Qwen3Nvfp4Model,
  data: TrainingData,
  validation?: TrainingData,
): Promise<string> {
  const { limitSeconds, ...settings } = plan[stage]
  await using trainer = new Trainer({
    ...{ model, data, optimizer, seed, ...settings },
    ...(validation && { validation, evalEvery: Math.ceil(settings.steps / validations) }),
    pack: true,
    recompute: 'none',
    checkpointDir: join(folder, `${name}-${stage}`),
    logFile: join(folder, `${name}-${stage}.jsonl`),
    signal: AbortSignal.timeout(1000 * limitSeconds),
  })
  const validationLosses: number[] = []
  trainer.on('eval', ({ loss }) => validationLosses.push(loss))
  const result: TrainResult = await trainer.run()
  const { reason, steps, loss, seconds } = result
  const { weights, scales, moments } = await model.memory()
  const bitsPerParameter = (8 * (weights + scales + moments)) / model.parameterCount
  print({
    ...{ arm: name, stage, reason, steps, loss, seconds, validationLosses },
    parameters: model.parameterCount,
    bitsPerParameter,
  })
  return join(result.checkpoint!, 'model.dat')
}

async function main(): Promise<void> {
  const tokenizer = await Tokenizer.fromFile(plan.tokenizer)
  const questions = await readJson<Record<QuestionSet, HeldOut[]>>('questions.json')
  const lines = await readJson<Pair[]>('lines.json')
  const config = await readQwen3Config(join(folder, 'config.json'))
  const tsv = (paths: readonly string[]) => TrainingData.fromTsv(paths, { tokenizer })
  const setsOf = (names: readonly string[]) => tsv(pathsOf(plan.sets, names))
  const phrasings = (group: string) => tsv([join(folder, `${group}.tsv`)])

  async function report(when: AskedLine['when'], dat: string): Promise<void> {
    await using model = await Qwen3Nvfp4Model.load(dat, { device })
    const began = performance.now()
    const heldOut = await askHeldOut(model, tokenizer, questions.heldOut)
    const validation = when === 'before' ? [] : await askHeldOut(model, tokenizer, questions.validation)
    const share = await shareOfLines(model, tokenizer, lines)
    const probes: [string, string][] = []
    for (const prompt of ['你是誰', '談談UFO', '我是誰']) probes.push([prompt, await ask(model, tokenizer, prompt)])
    const seconds = (performance.now() - began) / 1000
    print({ arm: name, when, heldOut, validation, lines: share, probes, seconds })
  }

  let dat: string
  {
    await using model = await Qwen3Nvfp4Model.initialize(config, { device, seed, stddev })
    dat = await train('scratch', model, await setsOf(mixedSets))
  }
  await report('before', dat)
  const folded = join(folder, `${name}-folded.dat`)
  {
    await using model = await Qwen3Nvfp4Model.load(dat, { device })
    const data = TrainingData.mix([
      { data: await setsOf(identitySets), weight: mixture.identitySets },
      { data: await phrasings('A'), weight: mixture.identityPhrasings },
      {
        data: await tsv([join(folder, 'C.tsv'), ...pathsOf(plan.sets, disambiguationSets)]),
        weight: mixture.userPhrasings,
      },
      { data: await phrasings('B'), weight: mixture.topicPhrasings },
      { data: await setsOf(mixedSets), weight: mixture.mixedSets },
    ])
    dat = await train('tuning', model, data, await phrasings('validation'))
    if (optimizer.weights === 'nvfp4+residual') await model.saveDat(folded, { residual: 'fold' })
  }
  await report('after', dat)
  if (optimizer.weights === 'nvfp4+residual') await report('folded', folded)
}

main().catch((error: unknown) => {
  console.error(error)
  process.exitCode = 1
})
