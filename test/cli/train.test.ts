import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { StepEvent, TrainerEvent } from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import { runCli, startCli, writeTinyModel } from '../support/run-cli'

const folder = temporaryFolder()
const at = (name: string) => join(folder, name)
let base: string[]
beforeAll(async () => {
  const model = await writeTinyModel(folder)
  writeFileSync(at('pairs.tsv'), '# prompt<TAB>answer\nhi\tyes\nho\tno\nwho\tme\n')
  writeFileSync(
    at('chat.jsonl'),
    `${JSON.stringify({
      messages: [
        { role: 'user', content: 'a' },
        { role: 'assistant', content: 'b' },
      ],
    })}\n`,
  )
  writeFileSync(at('words.txt'), 'user assistant '.repeat(40))
  base = ['--model', model, '--data', at('pairs.tsv')]
})

const train = (...args: string[]) => ['train', ...base, '--max-tokens', '64', ...args]
const lines = (text: string) =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as TrainerEvent)
const lossesOf = (stdout: string) =>
  lines(stdout)
    .filter((event): event is StepEvent => event.type === 'step')
    .map(({ loss }) => loss)

describe('train', () => {
  it('teaches an answer, probes it and writes the model', async () => {
    writeFileSync(at('probes.json'), JSON.stringify([{ prompt: 'who', expect: 'me', forbid: 'yes', group: 'A' }]))
    const probes = ['--probe', 'hi', '--probes-from', at('probes.json')]
    const files = [
      '--out',
      at('tuned.dat'),
      '--loss-curve',
      at('loss.svg'),
      '--log-file',
      at('log.jsonl'),
      '--memory-report',
      at('memory.json'),
    ]
    const args = ['--steps', '80', '--lr', '1e-2', '--batch-size=3', '--log-every', '40', ...probes, ...files]
    const { code, stdout } = await runCli(train(...args))
    expect(code).toBe(0)
    expect(stdout).toMatch(/^step 40 {2}loss [\d.]+ {2}lr [\d.e-]+ {2}norm [\d.]+ {2}\d+ tokens\/s$/m)
    expect(stdout).toMatch(/^step 80 {2}"hi" → "yes"\nstep 80 {2}"who" → "me" {2}holds\nstep 80 {2}A: 100\.0 % hold$/m)
    expect(stdout).toMatch(/^done \(steps\): 80 steps, loss 0\.\d+, \d+ labels in [\d.]+ s$/m)
    expect(lines(readFileSync(at('log.jsonl'), 'utf8')).length).toBeGreaterThan(80)
    expect(readFileSync(at('loss.svg'), 'utf8')).toMatch(/^<svg/)
    const { phases } = JSON.parse(readFileSync(at('memory.json'), 'utf8'))
    expect(phases.map(({ phase }: { phase: string }) => phase)).toEqual([
      'model_loaded',
      'optimizer_step_done',
      'training_done',
    ])
    const chat = await runCli(['chat', '--model', at('tuned.dat'), '--prompt', 'hi'])
    expect(chat.stdout).toBe('yes\n')
  })

  it('goes on from a checkpoint as if it had not stopped', async () => {
    const args = ['--steps', '12', '--lr', '1e-3', '--json']
    const whole = lossesOf((await runCli(train(...args))).stdout)
    expect(whole).toHaveLength(12)
    const kept = ['--checkpoint-dir', at('kept'), '--checkpoint-every', '5']
    await runCli(train(...args, ...kept))
    const [last] = readdirSync(at('kept'))
      .filter((name) => name.startsWith('step-'))
      .sort()
    const resumed = await runCli(train(...args, '--resume', at(`kept/${last}`)))
    expect([resumed.code, lossesOf(resumed.stdout)]).toEqual([0, whole.slice(5)])
    const refused = await runCli(train(...args, ...kept))
    expect([refused.code, refused.stderr]).toEqual([1, expect.stringMatching('resume')])
    const other = await runCli(train('--steps=12', '--lr=1e-2', ...kept, '--resume'))
    expect([other.code, other.stderr]).toEqual([1, expect.stringMatching(/RESUME_MISMATCH.*lr was 0.001 and is 0.01/)])
  })

  it('stops with a checkpoint and code 130 at SIGINT', async () => {
    const args = ['--steps', '1000000', '--checkpoint-dir', at('stopped'), '--out', at('none.dat'), '--log-every', '1']
    const cli = startCli(train(...args))
    await cli.said(/step 3 /)
    cli.process.kill('SIGINT')
    const { code, stdout } = await cli.ended
    expect(code).toBe(130)
    expect(stdout).toMatch(/^step \d+ {2}checkpoint .*stopped.*\ndone \(aborted\): \d+ steps/m)
    expect(existsSync(at('none.dat'))).toBe(false)
  })

  it('stops with a checkpoint when its memory guard sees a limit passed', async () => {
    const args = ['--steps', '1000000', '--checkpoint-dir', at('guarded'), '--host-limit-gb', '0.01']
    const { code, stdout, stderr } = await runCli(train(...args))
    expect(code).toBe(1)
    expect(stderr).toMatch(
      /^warning: .* of host memory are resident, over the limit of 0\.01 GiB\nerror: MEMORY_LIMIT: /m,
    )
    expect(stdout).toMatch(/done \(aborted\)/)
  })

  it('learns from chats and text, from a mix, and part of the model', async () => {
    const args = ['--model', base[1]!, '--steps', '2', '--max-tokens', '64', '--json']
    const data = ['--data', at('pairs.tsv'), '--data', at('chat.jsonl'), '--data', at('words.txt')]
    const mixed = await runCli([
      'train',
      ...args,
      ...data,
      '--data-weights',
      '2,1,1',
      '--pack',
      '--no-shuffle',
      '--last-layers',
      '1',
    ])
    expect([mixed.stderr, mixed.code]).toEqual(['', 0])
    expect(lossesOf(mixed.stdout)).toHaveLength(2)
    const refused = await runCli(['train', ...args, ...data])
    expect([refused.code, refused.stderr]).toEqual([
      2,
      expect.stringMatching('Expected --data-weights or --data-format'),
    ])
  })

  it('stops early when the validation loss does not fall', async () => {
    const args = ['--validation', at('pairs.tsv'), '--eval-every', '1', '--patience', '2', '--min-delta', '100']
    const { code, stdout } = await runCli(train('--steps', '50', ...args))
    expect(code).toBe(0)
    expect(stdout).toMatch(/^step 1 {2}validation [\d.]+ {2}the best so far\nstep 2 {2}validation/)
    expect(stdout).toMatch(/done \(early-stop\): 3 steps/)
  })

  it('leaves out outliers, and learns the hidden states of a teacher', async () => {
    const outliers = await runCli(train('--steps', '4', '--skip-loss-factor', '1.000001', '--json'))
    expect([outliers.stderr, outliers.code]).toEqual(['', 0])
    const taught = await runCli(train('--steps', '2', '--teacher', base[1]!, '--no-shuffle', '--json'))
    expect([taught.stderr, taught.code]).toEqual(['', 0])
    expect(lossesOf(taught.stdout)[0]).toBe(0) // the student is its teacher
  })

  it.each([
    [['--resume'], /Expected --checkpoint-dir with --resume/],
    [['--skip-norm-factor', '1'], /argument '1' is invalid/],
    [['--min-delta', '1'], /Expected --patience with --min-delta/],
    [['--gpu-limit-gb', '1'], /Expected a GPU for --device with --gpu-limit-gb/],
    [['--steps', '2', '--epochs', '2'], /nothing beside steps for epochs/],
    [['--betas', '0.9'], /Expected two numbers with a comma between them/],
    [['--max-grad-norm', 'non'], /argument 'non' is invalid/],
    [['--moments', 'nvfp'], /Did you mean nvfp4\?/],
    [['--train-names', 'nothing*'], /Expected at least one parameter for trainable/],
  ])('refuses %j with code 2', async (args, message) => {
    const { code, stderr } = await runCli(train(...args))
    expect([code, stderr]).toEqual([2, expect.stringMatching(message)])
  })
})

describe('one-step', () => {
  const phases = ['model_loaded', 'state_initialized', 'forward_done', 'backward_done', 'optimizer_step_done']

  it('takes a step on a sample and reports every phase', async () => {
    const args = [
      'one-step',
      ...base,
      '--sample-index',
      '2',
      '--memory-report',
      at('step.json'),
      '--save',
      at('step.dat'),
    ]
    const { code, stdout, stderr } = await runCli(args)
    expect([code, stderr]).toEqual([0, ''])
    expect(stdout).toMatch(
      /^loss [\d.]+ over 3 labels, gradient norm [\d.]+\nupdate rms [\d.]+, codes changed [\d.]+ %/,
    )
    expect(stdout).toMatch(/^optimizer_step_done +[\d.]+ MiB/m)
    const report = JSON.parse(readFileSync(at('step.json'), 'utf8'))
    expect(report.phases.map(({ phase }: { phase: string }) => phase)).toEqual(phases)
    expect(existsSync(at('step.dat'))).toBe(true)
  })

  it('takes the same fused step, and refuses a sample that is not there', async () => {
    const args = ['one-step', '--random-model', 'tiny', '--max-grad-norm', 'none', '--json']
    const apart = JSON.parse((await runCli(args)).stdout)
    const fused = JSON.parse((await runCli([...args, '--fused'])).stdout)
    expect(fused.steps[0].loss).toBe(apart.steps[0].loss)
    expect(fused.memory.phases.map(({ phase }: { phase: string }) => phase)).toEqual(
      phases.filter((name) => !/forward|backward/.test(name)),
    )
    const missing = await runCli(['one-step', ...base, '--sample-index', '3'])
    expect([missing.code, missing.stderr]).toEqual([
      2,
      expect.stringMatching('Expected fewer than 3 for --sample-index'),
    ])
  })
})

test('bench measures decoding, reading and training', async () => {
  const sizes = ['--prompt-tokens', '16', '--new-tokens', '8', '--train-tokens', '16', '--runs', '2']
  const { code, stdout } = await runCli(['bench', '--random-model', 'tiny', ...sizes, '--json'])
  expect(code).toBe(0)
  const { results } = JSON.parse(stdout) as { results: { what: string; tokens: number; tokensPerSecond: number }[] }
  expect(results.map(({ what, tokens }) => [what, tokens])).toEqual([
    ['decode', 4],
    ['prefill', 16],
    ['train', 16],
  ])
  const table = await runCli(['bench', '--random-model', 'tiny', ...sizes, '--only', 'prefill'])
  expect(table.stdout).toMatch(/\nwhat +tokens +tokens\/s +median +least +most +peak memory\nprefill +16 /)
})
