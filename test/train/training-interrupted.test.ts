/** Training that dies at any moment, is interrupted, or finds the disk full loses nothing that was saved. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { listFolder, temporaryFolder } from '../support/files'
import { killInChild, lastCheckpoint, trainInChild, trainScript } from '../support/killed-runs'
import { uniformSource } from '../support/random'
import { tinyConfig as config } from '../support/tiny-model'

const steps = 30
/** `QN_KILLS=50 npx jest test/train/training-interrupted` kills as often. */
const kills = Number(process.env['QN_KILLS'] ?? 5)

test(`${kills} kills at random moments leave a run that ends as if there had been none`, async () => {
  const [whole, folder] = [temporaryFolder(), temporaryFolder()]
  trainInChild({ config, folder: whole, steps })
  const random = uniformSource(Date.now())
  const reached: number[] = []
  // Between two checkpoints or within one: one takes about 15 ms here.
  for (let i = 0; i < kills; i++) reached.push(await killInChild({ config, folder, steps }, 60 * random()))
  expect(reached).toEqual([...reached].sort((a, b) => a - b))
  trainInChild({ config, folder, steps })
  expect(await lastCheckpoint(folder)).toEqual(await lastCheckpoint(whole))
  expect(listFolder(folder)).toEqual([28, 29, 30].map((step) => `step-000000${step}`))
}, 300_000)

test('SIGINT ends a run after its step, with a checkpoint', async () => {
  const folder = temporaryFolder()
  const argument = JSON.stringify({ config, folder, steps: 1e6 })
  const child = spawn(process.execPath, [trainScript, argument], { stdio: ['ignore', 'pipe', 'inherit'] })
  const chunks: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk))
  await once(child.stdout, 'data')
  child.kill('SIGINT')
  expect(await once(child, 'close')).toEqual([0, null])
  const lines = Buffer.concat(chunks).toString().trim().split('\n')
  const { taken, reason } = JSON.parse(lines.at(-1)!)
  expect(reason).toBe('interrupted')
  expect((await lastCheckpoint(folder)).step).toBe(taken)
})

const canMount =
  spawnSync('unshare', ['--user', '--map-root-user', '--mount', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']).status === 0
if (!canMount) console.log('skipped: a full disk (no user namespace to mount a small tmpfs in)')

;(canMount ? test : test.skip)('a disk that fills ends the run, which goes on once there is room', () => {
  const folder = temporaryFolder()
  const shell = `mount -t tmpfs -o size=4m tmpfs "$FOLDER" && exec "$NODE" "$SCRIPT" "$ARGUMENT"`
  const argument = JSON.stringify({ config, folder: join(folder, 'run'), steps: 5, fill: folder })
  const variables = { FOLDER: folder, NODE: process.execPath, SCRIPT: trainScript, ARGUMENT: argument }
  const { status, stdout, stderr } = spawnSync(
    'unshare',
    ['--user', '--map-root-user', '--mount', 'bash', '-c', shell],
    { encoding: 'utf8', env: { ...process.env, ...variables } },
  )
  if (status !== 0) throw new Error(stderr)
  const lines = stdout.trim().split('\n')
  expect(lines.map((line) => JSON.parse(line))).toEqual([
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
