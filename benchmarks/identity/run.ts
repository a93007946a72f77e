/**
 * Who it is: a model is trained from random weights on the mixed sets of the F# system, tuned on the identity, and asked 300
 * questions that no line of the training has, once with every state in NVFP4 and once with a residual behind the weights.
 *
 *   npm run bench:identity -- --sets FOLDER --tokenizer FOLDER [--size 71m|tiny] [--arms nvfp4,residual] [--device cuda:0]
 *     [--seed 1] [--seconds 150] [--out build/identity] [--phrasings 20000]
 *     [--scratch steps=900,…] [--tuning steps=1200,lr=0.0008,weightDecay=0,…] [--mixture identitySets=1,userPhrasings=5,…]
 *
 * SETS has the TSV files of sets.ts, TOKENIZER the tokenizer.json of Qwen3. The arms run at the same time, each as a process. OUT gets
 * results.json with every answer, tables.md and failures.txt. `--size tiny --device cpu` tries it out with a cut vocabulary. Settings
 * are chosen by what the questions for validation say, never by those that are held out.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { Tokenizer } from 'qwen3-nvfp4'
import { cutTokenizer } from './cut-tokenizer'
import { type HeldOut, makePhrasings } from './phrasings'
import type { Group, Phrasing } from './questions'
import { mulberry32 } from '../support/mulberry32'
import { shuffled } from './random'
import { disambiguationSets, identity, identitySets, mixedSets, notKnown, pathsOf, readPairs, user } from './sets'
import { askedLines, arms, mixture, phrasingCount, type Plan, sizes } from './settings'
import { failures, isAsked, type Line, type QuestionSet, tables } from './table'

const { values } = parseArgs({
  options: {
    sets: { type: 'string' },
    tokenizer: { type: 'string' },
    size: { type: 'string', default: '71m' },
    arms: { type: 'string', default: Object.keys(arms).join() },
    device: { type: 'string', default: 'cuda:0' },
    seed: { type: 'string', default: '1' },
    seconds: { type: 'string', default: '150' },
    out: { type: 'string', default: 'build/identity' },
    phrasings: { type: 'string', default: String(phrasingCount) },
    scratch: { type: 'string', default: '' },
    tuning: { type: 'string', default: '' },
    mixture: { type: 'string', default: '' },
  },
})
const began = performance.now()
const elapsed = (): string => ((performance.now() - began) / 1000).toFixed(1)

/** The same numbers with those of `name=number,…` in place of theirs. */
function changed<T extends object>(option: string, numbers: T, changes: string): T {
  const given = changes.split(',').filter((change) => change !== '')
  const entries = given.map((change): [string, number] => {
    const [name = '', value] = change.split('=')
    if (!(name in numbers) || !(Number(value) >= 0)) {
      throw new RangeError(`Expected --${option} of ${Object.keys(numbers)}=NUMBER but received ${change}`)
    }
    return [name, Number(value)]
  })
  return { ...numbers, ...Object.fromEntries(entries) }
}

/** Writes what the arms read. */
async function prepare(plan: Plan): Promise<void> {
  const { folder, sets, seed } = plan
  const { model, cutVocabulary } = sizes[plan.size]!
  const mixed = await readPairs(pathsOf(sets, mixedSets))
  const others = await readPairs(pathsOf(sets, [...identitySets, ...disambiguationSets]))
  const taught = [...mixed, ...others]
  const { tuning, validation, heldOut } = makePhrasings({
    ...{ seed, identity, user, notKnown, count: Number(values.phrasings) },
    sets: taught.map(({ prompt }) => prompt).join('\n'),
    identityLines: others.filter(({ answer }) => answer.startsWith(identity)).map(({ prompt }) => prompt),
  })
  const writeTsv = (name: string, lines: readonly Phrasing[]) =>
    writeFile(join(folder, `${name}.tsv`), lines.map(({ prompt, answer }) => `${prompt}\t${answer}\n`).join(''))
  for (const group of ['A', 'B', 'C'] satisfies Group[]) {
    const lines = tuning.filter((line) => line.group === group)
    await writeTsv(group, lines)
  }
  await writeTsv('validation', validation)
  const asked: Record<QuestionSet, HeldOut[]> = { validation, heldOut }
  await writeFile(join(folder, 'questions.json'), JSON.stringify(asked))
  // A prompt that the sets answer in two ways has no right answer.
  const answers = new Map<string, Set<string>>()
  for (const { prompt, answer } of mixed) answers.set(prompt, (answers.get(prompt) ?? new Set()).add(answer))
  const clear = mixed.filter(({ prompt }) => answers.get(prompt)!.size === 1)
  await writeFile(join(folder, 'lines.json'), JSON.stringify(shuffled(mulberry32(seed), clear).slice(0, askedLines)))

  let vocabulary = 151_936
  if (cutVocabulary) {
    const texts = [...taught, ...tuning].map(({ prompt, answer }) => `user\n${prompt}\nassistant\n${answer}\n`)
    const prompts = [...validation, ...heldOut].map(({ prompt }) => prompt)
    const count = await cutTokenizer(plan.tokenizer, [...texts, ...prompts], folder)
    vocabulary = 64 * Math.ceil(count / 64)
    plan.tokenizer = folder
  }
  const { eosTokenId } = await Tokenizer.fromFile(plan.tokenizer)
  const config = {
    architectures: ['Qwen3ForCausalLM'],
    model_type: 'qwen3',
    ...model,
    vocab_size: vocabulary,
    eos_token_id: eosTokenId,
    rope_theta: 10000,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: true,
    max_position_embeddings: 1024,
  }
  await writeFile(join(folder, 'config.json'), JSON.stringify(config))
  const counts = `${mixed.length} different lines of the mixed sets, ${others.length} of the others, ${tuning.length} phrasings`
  console.log(`${elapsed()} s: ${counts}; vocabulary ${vocabulary}`)
}

async function execute(arm: string, plan: Plan, onLine: (line: Line) => void): Promise<void> {
  const child = spawn(
    process.execPath,
    [...process.execArgv, 'benchmarks/identity/arm.ts', arm, JSON.stringify(plan)],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
      timeout: Math.max(1, Math.round(1000 * (Number(values.seconds) - Number(elapsed())))),
      killSignal: 'SIGKILL',
    },
  )
  const closed = once(child, 'close') as Promise<[number | null]>
  for await (const line of createInterface({ input: child.stdout })) onLine(JSON.parse(line) as Line)
  const [code] = await closed
  if (code !== 0) throw new Error(`arm ${arm} ended with ${code ?? 'a signal, probably as --seconds were over'}`)
}

async function main(): Promise<void> {
  const { sets, tokenizer, size, device, out } = values
  if (!sets || !tokenizer) throw new RangeError('Expected --sets and --tokenizer, folders')
  if (!sizes[size]) throw new RangeError(`Expected --size of ${Object.keys(sizes)} but received ${size}`)
  const chosen = values.arms.split(',')
  if (!chosen.every((arm) => arms[arm])) throw new RangeError(`Expected --arms of ${Object.keys(arms)}`)
  const folder = await mkdtemp(join(tmpdir(), 'identity-'))
  const plan: Plan = {
    ...{ folder, tokenizer: resolve(tokenizer), sets: resolve(sets), device, seed: Number(values.seed), size },
    scratch: changed('scratch', sizes[size].scratch, values.scratch),
    tuning: changed('tuning', sizes[size].tuning, values.tuning),
    mixture: changed('mixture', mixture, values.mixture),
  }
  const lines: Line[] = []
  const add = (line: Line) => {
    lines.push(line)
    console.log(`${elapsed()} s: ${line.arm} ${isAsked(line) ? `asked ${line.when}` : line.stage}`)
  }
  try {
    await prepare(plan)
    const ended = await Promise.allSettled(chosen.map((arm) => execute(arm, plan, add)))
    for (const result of ended) {
      if (result.status === 'fulfilled') continue
      console.error((result.reason as Error).message)
      process.exitCode = 1
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
  await mkdir(out, { recursive: true })
  await writeFile(join(out, 'results.json'), JSON.stringify(lines, null, 1))
  await writeFile(join(out, 'tables.md'), `${tables(lines)}\n`)
  await writeFile(join(out, 'failures.txt'), `${failures(lines)}\n`)
  console.log(`${tables(lines)}\n\nProbes that do not hold after tuning:\n${failures(lines)}\n${elapsed()} s in all`)
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
})
