/** Runs the built command as a user does, in a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process'
import { join, resolve } from 'node:path'
import { makeByteTokenizer, writeByteTokenizer } from '../../examples/support/make-byte-tokenizer'
import { tinyConfig, tinyModel } from './tiny-model'

export const cliPath = resolve(__dirname, '../../dist/cli.js')

export interface CliResult {
  code: number | null
  stdout: string
  stderr: string
}

export interface RunningCli {
  process: ChildProcess
  /** Resolves once stdout and stderr together match. */
  said(pattern: RegExp): Promise<void>
  ended: Promise<CliResult>
}

/** `input` null leaves stdin open. */
export function startCli(args: readonly string[], input: string | null = ''): RunningCli {
  const child = spawn(process.execPath, [cliPath, ...args], { stdio: 'pipe' })
  const result: CliResult = { code: null, stdout: '', stderr: '' }
  let heard = () => {}
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => {
      result[name] += text
      heard()
    })
  }
  child.stdin.on('error', () => {})
  if (input !== null) child.stdin.end(input)
  const ended = new Promise<CliResult>((done) => child.on('close', (code) => done({ ...result, code })))
  const said = (pattern: RegExp) =>
    new Promise<void>((done, fail) => {
      heard = () => pattern.test(result.stdout + result.stderr) && done()
      heard()
      void ended.then(() => fail(new Error(`ended without ${pattern}: ${JSON.stringify(result)}`)))
    })
  return { process: child, said, ended }
}

export const runCli = (args: readonly string[], input = ''): Promise<CliResult> => startCli(args, input).ended

/** A tiny random model with its tokenizer in `folder`; the path of the model. */
export async function writeTinyModel(folder: string): Promise<string> {
  const made = makeByteTokenizer('user\nassistant\n'.repeat(20), 300)
  await writeByteTokenizer(folder, made)
  const random = await tinyModel({}, { ...tinyConfig, vocabSize: made.vocabSize })
  const path = join(folder, 'model.dat')
  await random.saveDat(path)
  await random.dispose()
  return path
}
