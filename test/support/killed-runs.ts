/** Training runs of test/support/train-child.cjs in processes of their own, some of which die. */
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { findCheckpoint, type Qwen3Config } from 'qwen3-nvfp4'

export const trainScript = resolve(__dirname, 'train-child.cjs')

/** What the script is told. */
export interface ChildOptions {
  config: Qwen3Config
  folder: string
  steps: number
  device?: string
  /** A folder that is filled to the last block after step 2. */
  fill?: string
}

/** Runs it to its end. */
export function trainInChild(options: ChildOptions): void {
  const { status, stderr } = spawnSync(process.execPath, [trainScript, JSON.stringify(options)], { encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
}

/** Starts it and kills it `afterMs` after its first checkpoint; the step of the last whole checkpoint then. */
export async function killInChild(options: ChildOptions, afterMs: number): Promise<number> {
  const child = spawn(process.execPath, [trainScript, JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const exited = once(child, 'exit')
  await Promise.race([once(child.stdout, 'data'), exited])
  await new Promise((done) => setTimeout(done, afterMs))
  child.kill('SIGKILL')
  await exited
  const { checkpoint, damaged } = await findCheckpoint(options.folder)
  expect(damaged).toEqual([])
  return checkpoint!.step
}

const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

/** What the last checkpoint is made of, the losses of every step included. */
export async function lastCheckpoint(folder: string) {
  const { path, step, state, files } = (await findCheckpoint(folder)).checkpoint!
  return { step, state, files: files.map(({ name }) => [name, sha256(readFileSync(join(path, name)))]) }
}
