import { execFileSync } from 'node:child_process'
import { chmodSync, mkdirSync, readFileSync, readlinkSync, symlinkSync, writeFileSync } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { DatWriter, readDat, rewriteDat, writeDat } from 'qwen3-nvfp4/dat'
import { listFolder, temporaryFolder } from '../support/files'

const bytes = (...values: number[]) => Uint8Array.from(values)

describe('DatWriter leaves nothing half-written', () => {
  let folder = ''
  const target = () => join(folder, 'out.dat')
  beforeEach(() => {
    folder = temporaryFolder()
    writeFileSync(target(), 'the old file')
  })
  const expectOldFileAlone = () => {
    expect(listFolder(folder)).toEqual(['out.dat'])
    expect(readFileSync(target(), 'utf8')).toBe('the old file')
  }

  test('until finish, then the whole file', async () => {
    const writer = await DatWriter.create(target(), { entries: 1 })
    await writer.write('a', 0, [2], bytes(1, 2))
    expect(readFileSync(target(), 'utf8')).toBe('the old file')
    await writer.finish()
    expect(listFolder(folder)).toEqual(['out.dat'])
    expect([...readFileSync(target())]).toEqual([1, 1, 97, 0, 1, 2, 1, 2])
  })

  test('of 80 MiB either, parts of which are flushed on the way', async () => {
    const piece = bytes(...Array.from({ length: 251 }, (_, i) => i))
    const payload = Buffer.alloc(80 << 20, piece)
    const pieces = function* () {
      for (let at = 0; at < payload.length; at += 3 << 20) yield payload.subarray(at, at + (3 << 20))
    }
    const writer = await DatWriter.create(target(), { entries: 1 })
    await writer.write('a', 'uint8', [payload.length], pieces())
    await writer.finish()
    expect(readFileSync(target()).subarray(-payload.length).equals(payload)).toBe(true)
  })

  test('after abort, which may be called again', async () => {
    const writer = await DatWriter.create(target(), { entries: 1 })
    await writer.write('a', 0, [2], bytes(1, 2))
    await writer.abort()
    await writer.abort()
    expectOldFileAlone()
    await expect(writer.finish()).rejects.toMatchObject({ code: 'DISPOSED' })
  })

  test('when it goes out of scope unfinished', async () => {
    {
      await using writer = await DatWriter.create(target(), { entries: 1 })
      await writer.write('a', 0, [0], bytes())
    }
    expectOldFileAlone()
  })

  test('after a payload that is too short or too long', async () => {
    for (const payload of [bytes(1), bytes(1, 2, 3), [bytes(1), bytes(2), bytes(3)]]) {
      const writer = await DatWriter.create(target(), { entries: 1 })
      await expect(writer.write('a', 'uint8', [2], payload)).rejects.toMatchObject({
        code: 'DAT_PAYLOAD_SIZE',
        key: 'a',
      })
      await expect(writer.write('b', 'uint8', [2], bytes(1, 2))).rejects.toMatchObject({ code: 'DISPOSED' })
      expectOldFileAlone()
    }
  })

  test('after a flush that failed while more was written', async () => {
    const handle = await open(join(folder, 'out.dat'))
    const flush = jest.spyOn(Object.getPrototypeOf(handle) as FileHandle, 'datasync')
    await handle.close()
    flush.mockRejectedValue(Object.assign(new Error('EIO: i/o error, fdatasync'), { code: 'EIO' }))
    try {
      const writer = await DatWriter.create(target(), { entries: 1 })
      await writer.write('a', 'uint8', [65 << 20], [new Uint8Array(65 << 20)])
      await expect(writer.finish()).rejects.toMatchObject({
        code: 'IO_FAILED',
        message: expect.stringContaining('EIO'),
      })
      expect(flush).toHaveBeenCalled()
      expectOldFileAlone()
    } finally {
      flush.mockRestore()
    }
  })

  test('after a payload stream that throws', async () => {
    async function* broken() {
      yield bytes(1)
      throw new Error('the source broke')
    }
    const writer = await DatWriter.create(target(), { entries: 1 })
    await expect(writer.write('a', 'uint8', [2], broken())).rejects.toThrow('the source broke')
    expectOldFileAlone()
  })

  test('after a key that was already written', async () => {
    const writer = await DatWriter.create(target(), { entries: 2 })
    await writer.write('a', 'uint8', [], bytes(1))
    await expect(writer.write('a', 'uint8', [], bytes(1))).rejects.toMatchObject({ code: 'DAT_DUPLICATE_KEY' })
    expectOldFileAlone()
  })

  test('after more or fewer entries than announced', async () => {
    const fewer = await DatWriter.create(target(), { entries: 1 })
    await expect(fewer.finish()).rejects.toMatchObject({ code: 'DAT_ENTRY_COUNT' })
    const more = await DatWriter.create(target(), { entries: 0 })
    await expect(more.write('a', 0, [], bytes(1))).rejects.toMatchObject({ code: 'DAT_ENTRY_COUNT' })
    expectOldFileAlone()
  })

  test('after an abort signal, with its reason', async () => {
    const controller = new AbortController()
    const reason = new Error('stop')
    async function* slow() {
      yield bytes(1)
      controller.abort(reason)
      yield bytes(2)
    }
    const writer = await DatWriter.create(target(), { entries: 1, signal: controller.signal })
    await expect(writer.write('a', 'uint8', [2], slow())).rejects.toBe(reason)
    await expect(rewriteDat(target(), target(), {}, { signal: controller.signal })).rejects.toBe(reason)
    expectOldFileAlone()
  })

  test('when the disk is full', () => {
    // A file size limit of the shell fails like a full disk does: a short write, then an error.
    const script = `
      const { writeDat } = require(process.argv[1])
      const data = new Uint8Array(3 << 20)
      writeDat(process.argv[2], new Map([['a', { elementType: 0, shape: [3 << 20], data }]])).then(
        () => console.log('written'),
        (error) => console.log(error.code, error.cause.code),
      )`
    const dist = resolve(__dirname, '../../dist/dat.cjs')
    const command = 'ulimit -f 1024; exec "$0" -e "$1" "$2" "$3"'
    const output = execFileSync('bash', ['-c', command, process.execPath, script, dist, target()], { encoding: 'utf8' })
    expect(output.trim()).toBe('IO_FAILED EFBIG')
    expectOldFileAlone()
  })

  test('when two calls run at once: the second is refused, the first goes on', async () => {
    const writer = await DatWriter.create(target(), { entries: 1 })
    const first = writer.write('a', 'uint8', [2], bytes(1, 2))
    await expect(writer.write('b', 'uint8', [2], bytes(1, 2))).rejects.toMatchObject({ code: 'BUSY' })
    await first
    await writer.finish()
    expect([...(await readDat(target())).keys()]).toEqual(['a'])
  })
})

describe('DatWriter refuses', () => {
  const folder = temporaryFolder()
  const create = (name: string) => DatWriter.create(join(folder, name), { entries: 1 })

  test('a path that cannot be written, before anything is', async () => {
    await expect(create('no/such/folder.dat')).rejects.toMatchObject({ code: 'IO_FAILED', cause: { code: 'ENOENT' } })
    mkdirSync(join(folder, 'taken.dat'))
    await expect(create('taken.dat')).rejects.toMatchObject({ code: 'IO_FAILED' })
    if (process.getuid?.() === 0) {
      console.log('skipped: a folder without permission (root may write everywhere)')
      return
    }
    mkdirSync(join(folder, 'locked'))
    chmodSync(join(folder, 'locked'), 0o500)
    await expect(create('locked/x.dat')).rejects.toMatchObject({ code: 'IO_FAILED', cause: { code: 'EACCES' } })
  })

  test('misuse by name, and stays usable', async () => {
    await expect(DatWriter.create('', { entries: 1 })).rejects.toThrow(/path/)
    await expect(DatWriter.create(join(folder, 'x.dat'), {} as never)).rejects.toThrow(/entries/)
    await using writer = await create('misuse.dat')
    await expect(writer.write('', 0, [], bytes(1))).rejects.toThrow(/key/)
    await expect(writer.write('\ud800', 0, [], bytes(1))).rejects.toThrow(/lone surrogates/)
    await expect(writer.write('é'.repeat(32768), 0, [], bytes(1))).rejects.toThrow(/65535 bytes/)
    await expect(writer.write('a', 4711, [], bytes(1))).rejects.toThrow(/element type/)
    await expect(writer.write('a', 'float12' as never, [], bytes(1))).rejects.toThrow(/element type/)
    await expect(writer.write('a', 0, [-1], bytes(1))).rejects.toThrow(/shape\[0\]/)
    await expect(writer.write('a', 0, [2 ** 30, 2 ** 30], bytes(1))).rejects.toThrow(/2\^53/)
    await expect(writer.write('a', 0, new Array(65).fill(1), bytes(1))).rejects.toThrow(/64 dimensions/)
    await expect(writer.write('a', 0, [], 'text' as never)).rejects.toThrow(/payload/)
    await writer.write('a', 0, [], bytes(1))
    await writer.finish()
  })

  test('tensors whose data do not fit their shape, before the file is begun', async () => {
    const tensors = new Map([['a', { elementType: 6, shape: [2], data: Float32Array.of(1) }]])
    await expect(writeDat(join(folder, 'fit.dat'), tensors)).rejects.toThrow(/8 bytes .*"a"/)
  })

  test('a replacement for a key that the file has not, or of another size', async () => {
    await writeDat(join(folder, 'src.dat'), { a: { elementType: 0, shape: [1], data: bytes(1) } })
    const rewrite = (replacements: Record<string, Uint8Array>) =>
      rewriteDat(join(folder, 'src.dat'), join(folder, 'dst.dat'), replacements)
    await expect(rewrite({ b: bytes(1) })).rejects.toMatchObject({ code: 'DAT_NO_SUCH_KEY', key: 'b' })
    await expect(rewrite({ a: bytes(1, 2) })).rejects.toMatchObject({ code: 'DAT_PAYLOAD_SIZE', key: 'a' })
    expect(listFolder(folder)).not.toContain('dst.dat')
    expect(listFolder(folder).filter((name) => name.endsWith('.tmp'))).toEqual([])
  })
})

test('DatWriter replaces the file that a symbolic link points to', async () => {
  const folder = temporaryFolder()
  writeFileSync(join(folder, 'real.dat'), 'old')
  symlinkSync('real.dat', join(folder, 'link.dat'))
  await writeDat(join(folder, 'link.dat'), new Map())
  expect(readlinkSync(join(folder, 'link.dat'))).toBe('real.dat')
  expect([...readFileSync(join(folder, 'real.dat'))]).toEqual([0])
  expect((await readDat(join(folder, 'link.dat'))).size).toBe(0)
})
