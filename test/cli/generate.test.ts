import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { temporaryFolder } from '../support/files'
import { runCli, startCli, writeTinyModel } from '../support/run-cli'

const folder = temporaryFolder()
let model: string
beforeAll(async () => {
  model = await writeTinyModel(folder)
})

const result = (stdout: string) => JSON.parse(stdout) as Record<string, unknown> & { ids: number[]; text: string }

describe('generate', () => {
  it('writes the text that --json has, and ids without a tokenizer', async () => {
    const prompt = ['--prompt', 'user says', '--max-tokens=12', '--temperature', '0.8', '--seed', '3']
    const shown = await runCli(['generate', '--model', model, ...prompt])
    const { stdout } = await runCli(['generate', `--model=${model}`, ...prompt, '--json'])
    const object = result(stdout)
    expect(shown).toEqual({ code: 0, stdout: `${object.text}\n`, stderr: '' })
    expect(object).toMatchObject({ finishReason: 'max-tokens', generatedTokens: 12 })
    const plain = await runCli(['generate', '--random-model', 'tiny', '--ids', '5,6,7', '--max-tokens', '4'])
    expect(plain.stdout).toMatch(/^\d+(,\d+){3}\n$/)
  })

  it('reads a prompt from stdin, renders it as a chat, and lists the likeliest tokens', async () => {
    const args = [
      'generate',
      '--model',
      model,
      '--prompt-file',
      '-',
      '--max-tokens',
      '2',
      '--json',
      '--top-logprobs',
      '3',
    ]
    const raw = result((await runCli(args, 'hello')).stdout)
    const chat = result((await runCli([...args, '--chat', '--system', 'Be brief.'], 'hello')).stdout)
    expect(raw['promptTokens']).toBe(5)
    expect(chat['promptTokens']).toBeGreaterThan(20)
    expect(chat['tokens']).toHaveLength(2)
    expect(chat['tokens']).toEqual(
      chat.ids.map((id) => ({ id, logprob: expect.any(Number), topLogprobs: expect.arrayContaining([]) })),
    )
  })

  it('says times on stderr and writes a memory report', async () => {
    const report = join(folder, 'memory.json')
    const args = ['--ids', '1,2', '--max-tokens', '3', '--ignore-eos', '--timing', '--memory-report', report]
    const { code, stderr } = await runCli(['generate', '--random-model', 'tiny', ...args])
    expect(code).toBe(0)
    expect(stderr).toMatch(
      /^\[2 tokens read, 3 written, first after [\d.]+ s, [\d.]+ s in all, [\d.]+ tokens\/s; max-tokens\]$/m,
    )
    const { phases } = JSON.parse(readFileSync(report, 'utf8'))
    expect(phases.map(({ phase }: { phase: string }) => phase)).toEqual(['model_loaded', 'generation_done'])
  })

  it('keeps what came when the time is over', async () => {
    const args = ['generate', '--random-model', 'tiny', '--ids', '1', '--max-tokens', '1000000', '--max-repeats', '0']
    const { code, stdout } = await runCli([...args, '--timeout-ms', '300', '--json'])
    expect(code).toBe(0)
    expect(result(stdout)).toMatchObject({ finishReason: 'timeout' })
    expect(result(stdout).ids.length).toBeGreaterThan(0)
  })

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('ends with %s in order, with code %d', async (signal, code) => {
    const args = ['generate', '--random-model', 'tiny', '--ids', '1', '--max-tokens', '1000000', '--max-repeats', '0']
    const cli = startCli(args)
    await cli.said(/\d+,\d+,/)
    cli.process.kill(signal)
    expect(await cli.ended).toMatchObject({ code, stderr: '' })
  })

  it('ends quietly when nobody reads on', async () => {
    const cli = startCli([
      'generate',
      '--random-model',
      'tiny',
      '--ids',
      '1',
      '--max-tokens',
      '1000000',
      '--max-repeats=0',
    ])
    await cli.said(/\d+,/)
    cli.process.stdout!.destroy()
    expect(await cli.ended).toMatchObject({ code: 0, stderr: '' })
  })
})

describe('compare', () => {
  const args = ['compare', '--random-model', 'tiny', '--ids', '3,1,4,1,5,9,2,6', '--top-tokens', '2']

  it('prints a table, and the whole comparison as JSON', async () => {
    const shown = await runCli([...args, '--layers'])
    expect(shown).toMatchObject({ code: 0, stderr: '' })
    expect(shown.stdout).toMatch(/^path +likeliest +logit +logits error +worst layer +NaN +infinite\nreference /)
    expect(shown.stdout).toMatch(/^no layer differs by more than the tolerance$/m)
    const { stdout } = await runCli([...args, '--json'])
    expect(JSON.parse(stdout)).toMatchObject({ firstDivergence: null, sameTopToken: true })
  })

  it('ends with code 1 where the paths differ by more than the tolerance', async () => {
    const { code, stderr } = await runCli([...args, '--tolerance', '1e-12'])
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(/^error: the (training|cached) path diverges at layer \d+, by /),
    ])
  })
})
