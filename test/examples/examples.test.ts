/** Every example runs as a user runs it: a process of its own, on a tiny model made here. */
import { execFile } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { Tokenizer, TrainingData } from 'qwen3-nvfp4'
import { makeByteTokenizer, writeByteTokenizer } from '../../examples/support/make-byte-tokenizer'
import { temporaryFolder } from '../support/files'
import { tinyConfig, tinyModel } from '../support/tiny-model'

const root = resolve(__dirname, '../..')
const folder = temporaryFolder()
const model = join(folder, 'model.dat')
let config = tinyConfig

interface Output {
  stdout: string
  stderr: string
  code?: number
}

async function run(example: string, ...args: string[]): Promise<Output> {
  const command = ['--import', 'tsx', join(root, 'examples', example), ...args]
  return promisify(execFile)(process.execPath, command, { cwd: root }).catch((failure: Output) => failure)
}

beforeAll(async () => {
  const made = makeByteTokenizer('user\nassistant\n'.repeat(20), 300)
  await writeByteTokenizer(folder, made)
  config = { ...tinyConfig, vocabSize: made.vocabSize }
  const random = await tinyModel({}, config)
  await random.saveDat(model)
  await random.dispose()
})

test('each example says how it is used', async () => {
  const loading = ['load-and-chat.ts', 'stream-tokens.ts', 'fine-tune.ts', 'inspect-dat.ts']
  const training = ['train-on-tsv.ts', 'resume.ts', 'custom-loop.ts', 'distill.ts']
  for (const example of [...loading, ...training]) {
    const { code, stderr } = await run(example)
    expect([example, code]).toEqual([example, 2])
    const first = example === 'distill.ts' ? '<teacher.dat>' : '<model.dat>'
    expect(stderr).toMatch(`usage: tsx examples/${example} ${first}`)
  }
})

test('fine-tune teaches an answer, and load-and-chat gets it from the saved file', async () => {
  const pairs = join(folder, 'pairs.tsv')
  const tuned = join(folder, 'tuned.dat')
  writeFileSync(pairs, '# prompt<TAB>answer\nhi\tyes\n')
  const { stdout, stderr } = await run('fine-tune.ts', model, folder, pairs, tuned, '60', '1e-2')
  expect(stderr).toBe('')
  const losses = [...stdout.matchAll(/^epoch \d+: loss ([\d.]+) over 4 tokens$/gm)].map(([, loss]) => Number(loss))
  expect(losses).toHaveLength(60)
  expect(losses[59]).toBeLessThan(losses[0]! / 10)
  expect(stdout).toMatch(`wrote ${tuned}, `)
  expect(existsSync(tuned)).toBe(true)

  const chat = await run('load-and-chat.ts', tuned, folder, 'hi')
  expect(chat.stderr).toBe('')
  expect(chat.stdout).toMatch(/^> hi\nyes\n\[0 tokens kept, \d+ read, 4 written\]\n$/)
})

test('stream-tokens gives ids, probabilities and text, and the same again', async () => {
  const once = await run('stream-tokens.ts', model, folder, 'assistant', '5', '0.7')
  expect(once.stderr).toBe('')
  const tokens = once.stdout.match(/^ +\d+ +[\d.]+% (.* [\d.]+%){3}$/gm)!
  expect(tokens).toHaveLength(5)
  expect(once.stdout).toMatch('ended by max-tokens\nassistant')
  expect(await run('stream-tokens.ts', model, folder, 'assistant', '5', '0.7')).toEqual(once)
})

test('inspect-dat lists entries, or the bytes of one', async () => {
  const { stdout } = await run('inspect-dat.ts', model)
  expect(stdout).toMatch(/^model\.norm\.weight {2}float32\[32\] {2}128 bytes at \d+$/m)
  expect(stdout).toMatch(/^model\.layers\.0\.mlp\.up_proj\.weight\.qdata {2}uint8\[64, 16\] {2}1024 bytes at \d+$/m)
  expect(stdout).toMatch(/\n\d+ entries, \d+ bytes\n/)
  const norm = await run('inspect-dat.ts', model, 'model.norm.weight')
  expect(norm.stdout).toMatch(/^model\.norm\.weight: 128 bytes, 3 different\n {2}0x00 {2}50\.0%\n/)
  expect((await run('inspect-dat.ts', model, 'none')).stderr).toMatch('DAT_NO_SUCH_KEY')
})

test('make-identity-data writes different prompts with one answer, others held out, and the same again', async () => {
  const [output, heldOut] = [join(folder, 'identity.tsv'), join(folder, 'held-out.tsv')]
  const args = ['--output', output, '--target', '我是 F# 之神', '--count', '300', '--seed', '7', '--held-out', heldOut]
  expect((await run('make-identity-data.ts', ...args)).stderr).toBe('')
  const [first, probes] = [readFileSync(output, 'utf8'), readFileSync(heldOut, 'utf8')]
  const pairs = [first, probes].map((text) =>
    text
      .trimEnd()
      .split('\n')
      .slice(1)
      .map((line) => line.split('\t')),
  )
  expect(pairs.map(({ length }) => length)).toEqual([300, 100])
  expect(new Set(pairs.flat().map(([prompt]) => prompt)).size).toBe(400)
  expect(new Set(pairs.flat().map(([, answer]) => answer))).toEqual(new Set(['我是 F# 之神']))
  const tokenizer = await Tokenizer.fromFile(folder)
  expect((await TrainingData.fromTsv([output, heldOut], { tokenizer })).sampleCount).toBe(400)
  await run('make-identity-data.ts', ...args)
  expect(readFileSync(output, 'utf8')).toBe(first)
  const refused = await run('make-identity-data.ts', '--output', output, '--target', 'x', '--count', '1e9')
  expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching('--count must be a whole number')])
})

test('train-on-tsv teaches an answer in one call', async () => {
  const pairs = join(folder, 'pairs.tsv')
  const tuned = join(folder, 'trained.dat')
  writeFileSync(pairs, '# prompt<TAB>answer\nhi\tyes\nyou\tno\n')
  const { stdout, stderr } = await run('train-on-tsv.ts', model, folder, pairs, tuned, '60', '1e-2')
  expect(stderr).toBe('')
  expect(Number(stdout.match(/^60 steps, loss ([\d.]+), \d+ answer tokens\/s$/m)?.[1])).toBeLessThan(1)
  expect(stdout).toMatch(`wrote ${tuned}, `)
  expect((await run('load-and-chat.ts', tuned, folder, 'hi')).stdout).toMatch('> hi\nyes\n')
})

test('resume goes on with the losses of a run that never stopped', async () => {
  const pairs = join(folder, 'resume.tsv')
  writeFileSync(pairs, Array.from({ length: 5 }, (_, i) => `hi ${i}\tyes ${i}\n`).join(''))
  const go = async (checkpoints: string, ...args: string[]) =>
    (await run('resume.ts', model, folder, pairs, join(folder, checkpoints), '6', ...args)).stdout.trim().split('\n')
  const whole = await go('whole')
  expect(whole.slice(-1)[0]).toMatch(/^done: .*step-00000006\/model\.dat$/)
  const first = await go('parts', '4')
  expect(first.slice(-1)).toEqual(['stopped; run the same command to go on'])
  expect([...first.slice(0, -1), ...(await go('parts')).slice(0, -1)]).toEqual(whole.slice(0, -1))
})

test('custom-loop and distill lower their losses', async () => {
  const text = join(folder, 'text.txt')
  writeFileSync(text, 'user and assistant\n'.repeat(40))
  const custom = await run('custom-loop.ts', model, folder, text, join(folder, 'custom.dat'), '30')
  const losses = [...custom.stdout.matchAll(/^step \d+: loss ([\d.]+)/gm)].map(([, loss]) => Number(loss))
  expect(losses).toHaveLength(30)
  expect(losses[29]).toBeLessThan(losses[0]! / 2)

  const student = join(folder, 'student.dat')
  const other = await tinyModel({ seed: 8 }, config)
  await other.saveDat(student)
  await other.dispose()
  const distilled = await run('distill.ts', model, student, folder, text, join(folder, 'distilled.dat'), '40')
  expect(distilled.stderr).toBe('')
  const divergences = [...distilled.stdout.matchAll(/^step \d+: KL ([\d.]+) nats$/gm)].map(([, kl]) => Number(kl))
  expect(divergences).toHaveLength(40)
  expect(divergences[39]).toBeLessThan(divergences[0]! / 2)
})
