/** What is refused before anything runs, and what the help and its document say. */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { runCli } from '../support/run-cli'

const root = resolve(__dirname, '../..')
const { version } = JSON.parse(readFileSync(resolve(root, 'package.json'), 'utf8')) as { version: string }

const ids = ['--random-model', 'tiny', '--ids', '1,2,3']

describe('the command', () => {
  it.each([
    ['an unknown command', ['generat'], /unknown command 'generat'\n\(Did you mean generate\?\)/],
    [
      'an unknown flag',
      ['generate', '--max-token', '3'],
      /unknown option '--max-token'\n\(Did you mean --max-tokens\?\)/,
    ],
    [
      'an unknown flag with =',
      ['chat', '--temprature=1'],
      /unknown option '--temprature=1'\n\(Did you mean --temperature\?\)/,
    ],
    ['no value', ['generate', '--top-p'], /option '--top-p <x>' argument missing/],
    [
      'text for a number',
      ['generate', '--top-p', 'much'],
      /option '--top-p <x>' argument 'much' is invalid\. Expected a finite number above 0 and at most 1\./,
    ],
    [
      'a number out of range',
      ['generate', '--max-tokens=0'],
      /'--max-tokens <n>' argument '0' is invalid\. Expected an integer of at least 1\./,
    ],
    ['a hexadecimal number', ['generate', '--max-tokens=0x10'], /argument '0x10' is invalid/],
    ['a fraction', ['generate', '--top-k', '1.5'], /argument '1.5' is invalid\. Expected an integer from 0 to/],
    ['an empty text', ['generate', '--model', ''], /argument '' is invalid\. Expected a text that is not empty/],
    [
      'a wrong choice',
      ['compare', '--weights', 'nvfp'],
      /Expected one of nvfp4, fp32, bf16, fp16\. Did you mean nvfp4\?/,
    ],
    ['a wrong device', ['compare', '--device', 'gpu'], /argument 'gpu' is invalid\. Expected 'cpu' or 'cuda:N'\./],
    ['a wrong seed', ['generate', '--seed=-1'], /argument '-1' is invalid\. Expected an integer or bigint from 0/],
    ['an argument too many', ['generate', 'word'], /too many arguments for 'generate'/],
    ['no model', ['generate', '--ids', '1'], /Expected one of --model and --random-model but received neither/],
    ['two models', ['generate', ...ids, '--model', 'x'], /received both/],
    ['a wrong preset', ['generate', '--random-model', 'tinny', '--ids', '1'], /received tinny; did you mean tiny\?/],
    ['no tokenizer', ['generate', '--random-model', 'tiny', '--prompt', 'x'], /Expected --tokenizer/],
    [
      'two prompts',
      ['generate', ...ids, '--prompt', 'x'],
      /Expected one of --prompt, --prompt-file and --ids but received 2/,
    ],
    ['ids beyond the vocabulary', ['generate', '--random-model=tiny', '--ids=99999'], /from 0 to 2047 for ids\[0\]/],
    ['--system without --chat', ['generate', ...ids, '--system', 'x'], /Expected --chat with --system/],
    [
      '--turns alone',
      ['chat', '--random-model', 'tiny', '--turns', '2'],
      /Expected --prompt or --prompts-from with --turns/,
    ],
    ['no limit', ['guard', '--', 'true'], /Expected --gpu-limit-gb, --host-limit-gb or both/],
    ['no program', ['guard', '--host-limit-gb', '1'], /missing required argument 'program'/],
  ])('refuses %s with code 2 and says what is right', async (_, args, message) => {
    const { code, stdout, stderr } = await runCli(args)
    expect(stderr).toMatch(message)
    expect([code, stdout]).toEqual([2, ''])
  })

  it('ends with code 1 and the code of the error when a file or a device is not there', async () => {
    const file = await runCli(['generate', '--model', '/nowhere/model.dat', '--ids', '1'])
    expect([file.code, file.stderr]).toEqual([
      1,
      expect.stringMatching(/^error: IO_FAILED: .*\/nowhere\/model\.dat.*check the path/),
    ])
    const device = await runCli(['generate', ...ids, '--device=cuda:99'])
    expect([device.code, device.stderr]).toEqual([1, expect.stringMatching(/^error: CUDA_UNAVAILABLE: /)])
  })

  it('shows its help and version', async () => {
    expect(await runCli(['--version'])).toEqual({ code: 0, stdout: `${version}\n`, stderr: '' })
    expect(await runCli(['--help'])).toMatchObject({
      code: 0,
      stderr: '',
      stdout: expect.stringMatching(/^Usage: qwen3-nvfp4/),
    })
    expect(await runCli([])).toMatchObject({ code: 2, stdout: '' })
  })

  it('has every flag in docs/cli.md as its help shows it', () => {
    execFileSync(process.execPath, ['scripts/cli-docs.mjs', '--check'], { cwd: root, stdio: 'pipe' })
  })
})
