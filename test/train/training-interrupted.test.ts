/** Training that dies at any moment, is interrupted, or finds the disk full loses nothing that was saved. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { findCheckpoint } from 'qwen3-nvfp4'
import { listFolder, temporaryFolder } from '../support/files'
import { uniformSource } from '../support/random'
import { tinyConfig } from '../support/tiny-model'

const script = resolve(__dirname, '../support/train-child.cjs')
const steps = 30
const kills = Number(process.env['QN_KILLS'] ?? 5)

const argument = (folder: string, more: object = {}) => JSON.stringify({ config: tinyConfig, folder, steps, ...more })

function train(folder: string): void {
  const { status, stderr } = spawnSync(process.execPath, [script, argument(folder)], { encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
}

/** What the last checkpoint is made of, losses of every step included. */
async function contentOf(folder: string) {
  const { path, step, state, files } = (await findCheckpoint(folder)).checkpoint!
  return { step, state, files: files.map(({ name }) => [name, readFileSync(join(path, name))]) }
}

let whole: Awaited<ReturnType<typeof contentOf>>
beforeAll(async () => {
  const folder = temporaryFolder()
  train(folder)
  whole = await contentOf(folder)
})

test(`${kills} kills at random moments leave a run that ends as if there had been none`, async () => {
  const folder = temporaryFolder()
  const random = uniformSource(Date.now() % 1e6)
  const reached: number[] = []
  for (let i = 0; i < kills; i++) {
    const child = spawn(process.execPath, [script, argument(folder)], { stdio: ['ignore', 'pipe', 'inherit'] })
    // Some die while they start, the others at any moment between two checkpoints or within one.
    await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])
    await new Promise((done) => setTimeout(done, 60 * random()))
    child.kill('SIGKILL')
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
    const { checkpoint, damaged } = await findCheckpoint(folder)
    expect(damaged).toEqual([])
    reached.push(checkpoint!.step)
  }
  expect(reached).toEqual([...reached].sort((a, b) => a - b))
  train(folder)
  expect(await contentOf(folder)).toEqual(whole)
  expect(listFolder(folder)).toEqual([28, 29, 30].map((step) => `step-000000${step}`))
}, 300_000)

const canMount =
  spawnSync('unshare', ['--user', '--map-root-user', '--mount', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']).status === 0
if (!canMount) console.log('skipped: a full disk (no user namespace to mount a small tmpfs in)')

;(canMount ? test : test.skip)('a disk that fills ends the run, which goes on once there is room', () => {
  const folder = temporaryFolder()
  const shell = `mount -t tmpfs -o size=4m tmpfs "$FOLDER" && exec "$NODE" "$SCRIPT" "$ARGUMENT"`
  const { status, stdout, stderr } = spawnSync(
    'unshare',
    ['--user', '--map-root-user', '--mount', 'bash', '-c', shell],
    {
      encoding: 'utf8',
      env: {
        ...process.env,
        ...{ FOLDER: folder, NODE: process.execPath, SCRIPT: script },
        ARGUMENT: argument(join(folder, 'run'), { steps: 5, fill: folder }),
      },
    },
  )
  if (status !== 0) throw new Error(stderr)
  const lines = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(lines).toEqual([
    { step: 1 },
    { step: 2 },
    {
      code: 'IO_FAILED',
      message: expect.stringMatching(/no space left on device/i),
      left: ['step-00000001', 'step-00000002'],
      step: 3,
    },
    { step: 4 },
    { step: 5 },
    { taken: 5, reason: 'steps' },
  ])
})
