import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatReader, Qwen3Nvfp4Error, readDat } from 'qwen3-nvfp4/dat'
import { datBytes, datEntry, varint } from '../support/dat-bytes'
import { listFolder, temporaryFolder } from '../support/files'

const good = datEntry('w', 6, [1], [0, 0, 128, 63])

/** One file per refusal: [what it is, its bytes, the code, where, what the message says]. */
const corpus: [string, Uint8Array, string, object, RegExp][] = [
  ['an empty file', datBytes(), 'DAT_TRUNCATED', { offset: 0 }, /ends inside the entry count/],
  ['a file that ends in its entry count', datBytes([0x80]), 'DAT_TRUNCATED', { offset: 0 }, /the entry count/],
  [
    'more entries announced than there are',
    datBytes(4, good),
    'DAT_TRUNCATED',
    { offset: 10 },
    /too early for the 4 entries/,
  ],
  ['an entry that is not there', datBytes(2, good), 'DAT_TRUNCATED', { offset: 10 }, /the key length of entry 1/],
  ['a count that no file could hold', datBytes(2 ** 45, good), 'DAT_TOO_MANY_ENTRIES', { offset: 0 }, /maxEntries/],
  ['a file that ends in a key', datBytes(1, 9, 'model'), 'DAT_TRUNCATED', { offset: 2 }, /the key of entry 0/],
  [
    'a file that ends before the shape',
    datBytes(1, 3, 'key', 6),
    'DAT_TRUNCATED',
    { key: 'key', offset: 6 },
    /dimensions/,
  ],
  [
    'a file that ends in a dimension',
    datBytes(1, 1, 'k', 6, 2, 3, [0x83]),
    'DAT_TRUNCATED',
    { key: 'k' },
    /dimension 1/,
  ],
  [
    'a payload cut short',
    datBytes(1, good.subarray(0, -1)),
    'DAT_TRUNCATED',
    { key: 'w', offset: 6 },
    /4 bytes .* 3 that/,
  ],
  ['bytes after the last entry', datBytes(1, good, [0]), 'DAT_OVERSIZED', { offset: 10 }, /1 bytes follow/],
  [
    'fewer entries announced than there are',
    datBytes(1, good, good),
    'DAT_OVERSIZED',
    { offset: 10 },
    /9 bytes follow/,
  ],
  ['the same key twice', datBytes(2, good, good), 'DAT_DUPLICATE_KEY', { key: 'w' }, /twice/],
  ['an empty key', datBytes(1, 0, 6, 0, [0, 0, 0, 0]), 'DAT_BAD_KEY', { offset: 1 }, /0 bytes/],
  [
    'a key over the limit',
    datBytes(1, 65536, 'x'.repeat(65536), 0, 0, [0]),
    'DAT_BAD_KEY',
    { offset: 1 },
    /65536 bytes/,
  ],
  ['a key that is not UTF-8', datBytes(1, 2, [0xc3, 0x28], 0, 0, [0]), 'DAT_BAD_KEY', { offset: 1 }, /UTF-8/],
  ['a key with an encoded surrogate', datBytes(1, 3, [0xed, 0xa0, 0x80], 0, 0, [0]), 'DAT_BAD_KEY', {}, /UTF-8/],
  // exportsd.py counts characters: 'né' is announced as 2 bytes, so the type is read from inside the key.
  ['a key length in characters', datBytes(1, 2, 'né', 6, 0, [0, 0, 0, 0]), 'DAT_BAD_KEY', {}, /UTF-8/],
  ['a padded count', datBytes([0x81, 0x00], good), 'DAT_BAD_VARINT', { offset: 0 }, /shortest form/],
  [
    'a padded dimension',
    datBytes(1, 1, 'k', 0, 1, [0x81, 0x80, 0x00], [7]),
    'DAT_BAD_VARINT',
    { key: 'k' },
    /dimension 0/,
  ],
  [
    'a varint without an end',
    datBytes(1, [255, 255, 255, 255, 255, 255, 255, 255, 255, 255]),
    'DAT_BAD_VARINT',
    {},
    /too large/,
  ],
  ['a dimension of 2^53', datBytes(1, 1, 'k', 0, 1, varint(2n ** 53n)), 'DAT_BAD_VARINT', { key: 'k' }, /too large/],
  [
    'an int64 of -1 as a dimension',
    datBytes(1, 1, 'k', 0, 1, varint(2n ** 64n - 1n)),
    'DAT_BAD_VARINT',
    {},
    /too large/,
  ],
  ['an unknown element type', datBytes(1, 1, 'k', 16, 0, [0]), 'DAT_UNKNOWN_TYPE', { key: 'k', offset: 3 }, /type 16/],
  [
    'the marker of an unknown type',
    datBytes(1, 1, 'k', 4711, 0, [0]),
    'DAT_UNKNOWN_TYPE',
    { key: 'k' },
    /4711.*exportsd/,
  ],
  ['65 dimensions', datBytes(1, 1, 'k', 0, 65, new Array(65).fill(1), [0]), 'DAT_BAD_SHAPE', { key: 'k' }, /65 dim/],
  [
    'a shape whose bytes pass 2^53',
    datBytes(1, 1, 'k', 6, 2, 2 ** 32, 2 ** 31),
    'DAT_BAD_SHAPE',
    { key: 'k' },
    /2\^53/,
  ],
  // 2^32 x 2^32 wraps to 0 in 64 bits.
  ['a shape whose product wraps', datBytes(1, 1, 'k', 0, 2, 2 ** 32, 2 ** 32), 'DAT_BAD_SHAPE', { key: 'k' }, /2\^53/],
  [
    'a payload over 4 GiB that is not there',
    datBytes(1, 1, 'k', 0, 1, 2 ** 32 + 1, [1]),
    'DAT_TRUNCATED',
    {},
    /4294967297/,
  ],
  ['an SGD state', datBytes(3, 'SGD', 1, 2, new Array(80).fill(7)), 'DAT_OPTIMIZER_STATE', {}, /state of a SGD/],
]

describe('DatReader.open refuses', () => {
  const folder = temporaryFolder()

  test.each(corpus)('%s', async (name, bytes, code, details, message) => {
    const path = join(folder, 'hostile.dat')
    writeFileSync(path, bytes)
    for (const input of [path, bytes]) {
      const error = await DatReader.open(input).catch((caught: unknown) => caught)
      expect(error).toBeInstanceOf(Qwen3Nvfp4Error)
      expect(error).toMatchObject({ code, file: input === path ? path : 'bytes', ...details })
      expect((error as Error).message).toMatch(message)
      expect((error as Error).message).toContain(input === path ? path : 'bytes')
    }
  })

  test('more entries than maxEntries', async () => {
    const opening = DatReader.open(datBytes(1, good), { maxEntries: 0 })
    await expect(opening).rejects.toMatchObject({ code: 'DAT_TOO_MANY_ENTRIES' })
    expect((await DatReader.open(datBytes(1, good), { maxEntries: 1 })).entries).toHaveLength(1)
  })

  test('a path that is not there and a folder', async () => {
    await expect(DatReader.open(join(folder, 'none.dat'))).rejects.toMatchObject({
      code: 'IO_FAILED',
      cause: { code: 'ENOENT' },
    })
    await expect(DatReader.open(folder)).rejects.toMatchObject({ code: 'IO_FAILED', message: /regular file/ })
  })

  test('what is no file at all', async () => {
    for (const input of [undefined, null, 7, {}, '']) {
      await expect(DatReader.open(input as never)).rejects.toThrow(/^Expected a path/)
    }
    await expect(DatReader.open('x', { maxEntries: -1 })).rejects.toThrow(/maxEntries/)
    await expect(DatReader.open('x', { signal: 1 as never })).rejects.toThrow(/AbortSignal/)
  })
})

describe('an open DatReader refuses', () => {
  const folder = temporaryFolder()
  const path = join(folder, 'good.dat')
  const whole = datBytes(1, datEntry('w', 0, [100_000], new Uint8Array(100_000)))
  beforeEach(() => writeFileSync(path, whole))

  test('a key that the file has not', async () => {
    await using reader = await DatReader.open(path)
    await expect(reader.read('nope')).rejects.toMatchObject({ code: 'DAT_NO_SUCH_KEY', file: path, key: 'nope' })
    expect(() => reader.stream('nope')).toThrow(/no entry "nope"/)
    expect(reader.has('nope')).toBe(false)
  })

  test('a file that became shorter', async () => {
    await using reader = await DatReader.open(path)
    truncateSync(path, 50_000)
    await expect(reader.read('w')).rejects.toMatchObject({ code: 'DAT_TRUNCATED', key: 'w', offset: 50_000 })
  })

  test('use after close, and closes twice without complaint', async () => {
    const reader = await DatReader.open(path)
    await reader.close()
    await reader.close()
    await expect(reader.read('w')).rejects.toMatchObject({ code: 'DISPOSED' })
  })

  test('to go on after an abort, with the reason of the signal', async () => {
    await using reader = await DatReader.open(path)
    const controller = new AbortController()
    const reason = new Error('enough')
    let chunks = 0
    const consume = async () => {
      for await (const chunk of reader.stream('w', { chunkBytes: 1000, signal: controller.signal })) {
        if (chunk.length && ++chunks === 3) controller.abort(reason)
      }
    }
    await expect(consume()).rejects.toBe(reason)
    expect(chunks).toBe(3)
    await expect(readDat(path, { signal: controller.signal })).rejects.toBe(reason)
  })

  test('a chunk size out of range', async () => {
    await using reader = await DatReader.open(path)
    expect(() => reader.stream('w', { chunkBytes: 0 })).toThrow(/chunkBytes/)
    expect(listFolder(folder)).toEqual(['good.dat'])
  })
})
