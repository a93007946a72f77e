/** A disk that is full, and paths that cannot be written: an error with its reason, the older file untouched, no leftovers. */
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type PackedAdamW, type KvCache, type Qwen3Nvfp4Model, writeDat, writeTranscript } from 'qwen3-nvfp4'
import { listFolder, temporaryFolder } from '../support/files'
import { idsOf, tinyConfig, tinyModel } from '../support/tiny-model'

const entry = resolve(__dirname, '../../dist/index.cjs')

/** Runs in a child with the folder to write into; prints what became of every writer. */
const script = (folder: string, hasFiller: boolean) => `
  const { existsSync, openSync, closeSync, writeSync, readFileSync, readdirSync, rmSync, writeFileSync } = require('node:fs')
  const { join } = require('node:path')
  const { Qwen3Nvfp4Model, writeDat, writeTranscript } = require(${JSON.stringify(entry)})
  const folder = ${JSON.stringify(folder)}
  const config = { ...${JSON.stringify(tinyConfig)}, hiddenSize: 128, intermediateSize: 256 }
  const main = async () => {
    const model = await Qwen3Nvfp4Model.initialize(config, { threads: 1 })
    const optimizer = model.createOptimizer()
    await optimizer.trainStep({ ids: [1, 2, 3], labels: [1, 2, 3] })
    const cache = model.createKvCache({ maxTokens: 300 })
    await model.forwardWithKvCache(Array(200).fill(7), cache, { logits: 'none' })
    const words = 'word '.repeat(20000)
    const writers = {
      'model.dat': (path) => model.saveDat(path),
      'optimizer.state': (path) => optimizer.save(path),
      'cache.bin': (path) => cache.save(path),
      'tensors.dat': (path) => writeDat(path, { weight: { elementType: 0, shape: [100000], data: new Uint8Array(100000) } }),
      'chat.json': (path) => writeTranscript(path, [{ role: 'user', content: words }]),
    }
    for (const name of Object.keys(writers)) writeFileSync(join(folder, name), 'older')
    if (${hasFiller}) {
      const filler = openSync(join(folder, 'filler'), 'w')
      try { for (;;) writeSync(filler, Buffer.alloc(4096)) } catch {}
      closeSync(filler)
    }
    const report = {}
    for (const [name, write] of Object.entries(writers)) {
      const path = join(folder, name)
      const error = await write(path).then(() => ({}), (error) => error)
      report[name] = { code: error.code, message: error.message, after: readFileSync(path, 'utf8'), files: readdirSync(folder).sort() }
    }
    if (${hasFiller}) {
      rmSync(join(folder, 'filler'))
      for (const [name, write] of Object.entries(writers)) {
        await write(join(folder, name))
        report[name].later = readFileSync(join(folder, name)).length
      }
    }
    console.log(JSON.stringify(report))
  }
  main().catch((error) => { console.error(error); process.exit(1) })`

interface Outcome {
  code: string
  message: string
  after: string
  files: string[]
  later?: number
}

/** `shell` runs node with the script as its input in the environment to be tested; undefined when it cannot be made. */
function report(shell: string, folder: string, hasFiller: boolean): Record<string, Outcome> {
  const { status, stdout, stderr } = spawnSync('bash', ['-c', shell], {
    input: script(folder, hasFiller),
    encoding: 'utf8',
    env: { ...process.env, FOLDER: folder, NODE: process.execPath },
  })
  if (status !== 0) throw new Error(stderr)
  return JSON.parse(stdout) as Record<string, Outcome>
}

const names = ['cache.bin', 'chat.json', 'model.dat', 'optimizer.state', 'tensors.dat']
const canMount =
  spawnSync('unshare', ['--user', '--map-root-user', '--mount', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']).status === 0
if (!canMount) console.log('skipped: a full disk (no user namespace to mount a small tmpfs in)')
const isLinux = process.platform === 'linux'
if (!isLinux) console.log('skipped: a limit on the size of files (its unit and signal are those of Linux)')

const places = [
  {
    // A file system of 2 MiB in a mount namespace of the child's own, filled to the last block.
    place: 'a full disk',
    shell: `exec unshare --user --map-root-user --mount bash -c 'mount -t tmpfs -o size=2m tmpfs "$FOLDER" && exec "$NODE"'`,
    reason: 'no space left on device',
    hasFiller: true,
    possible: canMount,
  },
  {
    // Node ignores SIGXFSZ, so that a write past the limit of 8 KiB fails with EFBIG after a part was written.
    place: 'a limit on the size of files',
    shell: 'ulimit -f 8 && exec "$NODE"',
    reason: 'file too large',
    hasFiller: false,
    possible: isLinux,
  },
]

describe.each(places)('$place', ({ shell, reason, hasFiller, possible }) => {
  if (!possible) return test.skip('cannot be made here', () => {})
  let outcomes: Record<string, Outcome>
  beforeAll(() => {
    outcomes = report(shell, temporaryFolder(), hasFiller)
  })

  test.each(names)('ends the writing of %s with IO_FAILED and leaves the older file, alone', (name) => {
    const { code, message, after, files } = outcomes[name]!
    expect(code).toBe('IO_FAILED')
    expect(message.toLowerCase()).toContain(reason)
    expect(message).toContain(name)
    expect(after).toBe('older')
    expect(files).toEqual([...names, ...(hasFiller ? ['filler'] : [])].sort())
  })

  if (hasFiller) {
    test('is no hindrance once there is room: the same calls succeed', () => {
      for (const name of names) expect(outcomes[name]!.later).toBeGreaterThan(8192)
    })
  }
})

describe('a path that cannot be written', () => {
  let model: Qwen3Nvfp4Model
  let optimizer: PackedAdamW
  let cache: KvCache
  beforeAll(async () => {
    model = await tinyModel()
    optimizer = model.createOptimizer()
    cache = model.createKvCache({ maxTokens: 10 })
    await model.forwardWithKvCache(idsOf(3), cache)
  })
  // The ledger is shared by every test file of a process, and the cache's own test counts what is in it.
  afterAll(async () => {
    for (const object of [cache, optimizer, model]) await object.dispose()
  })

  const writers: [string, (path: string) => Promise<unknown>][] = [
    ['saveDat', (path) => model.saveDat(path)],
    ['PackedAdamW.save', (path) => optimizer.save(path)],
    ['KvCache.save', (path) => cache.save(path)],
    ['writeDat', (path) => writeDat(path, {})],
    ['writeTranscript', (path) => writeTranscript(path, [])],
  ]

  test.each(writers)('is refused by %s, and nothing is left', async (_, write) => {
    const folder = temporaryFolder()
    mkdirSync(join(folder, 'folder'))
    writeFileSync(join(folder, 'file'), 'older')
    for (const path of [join(folder, 'none', 'x'), join(folder, 'file', 'x'), join(folder, 'folder')]) {
      await expect(write(path)).rejects.toMatchObject({
        name: 'Qwen3Nvfp4Error',
        code: 'IO_FAILED',
        message: expect.stringContaining(path),
      })
    }
    expect(listFolder(folder)).toEqual(['file', 'folder'])
    expect(listFolder(join(folder, 'folder'))).toEqual([])
    expect(readFileSync(join(folder, 'file'), 'utf8')).toBe('older')
  })
})
