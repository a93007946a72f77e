/** The cache as a store: positions, forks and files. What it computes is also in forward.test.ts and generate.test.ts. */
import { copyFileSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { KvCache, Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { listFolder, temporaryFolder } from '../support/files'
import { expectClose, idsOf, tinyConfig, tinyModel } from '../support/tiny-model'

const headerBytes = 128
const tokenBytes = tinyConfig.numHiddenLayers * 2 * tinyConfig.numKeyValueHeads * tinyConfig.headDim * 4

let model: Qwen3Nvfp4Model
let folder: string
beforeAll(async () => {
  model = await tinyModel()
  folder = temporaryFolder()
})
afterAll(() => model.dispose())

const cacheOf = async (ids: number[], maxTokens = 200): Promise<KvCache> => {
  const cache = model.createKvCache({ maxTokens })
  if (ids.length > 0) await model.forwardWithKvCache(ids, cache, { logits: 'none' })
  return cache
}

/** Logits [V] after these tokens. */
const next = async (cache: KvCache, ids: number[], of = model): Promise<Float32Array> =>
  (await of.forwardWithKvCache(ids, cache)).logits.toFloat32Array()

describe('positions', () => {
  test.each([1, 7, 63, 64, 65])('chunks of %i tokens give the logits of the whole, across pages', async (chunk) => {
    const ids = idsOf(150)
    const whole = await (await model.forward(ids, { logits: 'all' })).logits.toFloat32Array()
    const cache = await cacheOf([])
    for (let at = 0; at < ids.length; at += chunk) {
      const part = ids.slice(at, at + chunk)
      const result = await model.forwardWithKvCache(part, cache, { logits: 'all' })
      const [begin, end] = [at * tinyConfig.vocabSize, (at + part.length) * tinyConfig.vocabSize]
      expectClose(await result.logits.toFloat32Array(), whole.subarray(begin, end), 1e-4, 1e-4)
      expect(cache.seqLen).toBe(at + part.length)
    }
    await cache.dispose()
  })

  test.each([0, 1, 63, 64, 65, 99, 100])('cut to %i tokens it goes on as if the rest had never been', async (keep) => {
    const cache = await cacheOf(idsOf(100))
    await cache.truncate(keep)
    expect(cache.seqLen).toBe(keep)
    const fresh = await cacheOf(idsOf(100).slice(0, keep))
    // Close, not equal: a chunk of one token is summed in another order than one of a hundred.
    expectClose(await next(cache, [3, 1, 4]), await next(fresh, [3, 1, 4]), 1e-4, 1e-4)
    await Promise.all([cache.dispose(), fresh.dispose()])
  })

  test('pages are allocated as they are needed, and given back by truncate and reset', async () => {
    const cache = model.createKvCache({ maxTokens: 100_000 })
    const page = 64 * tokenBytes
    expect(await cache.bytes()).toBe(0)
    await next(cache, idsOf(64))
    expect(await cache.bytes()).toBe(page)
    await next(cache, [1])
    expect(await cache.bytes()).toBe(2 * page)
    await cache.truncate(64)
    expect(await cache.bytes()).toBe(page)
    await cache.reset()
    expect([cache.seqLen, await cache.bytes()]).toEqual([0, 0])
    expect((await model.memory()).cache).toBe(0)
    await cache.dispose()
  })

  test('half-width caches differ from the fp32 one by their rounding only', async () => {
    const full = await cacheOf(idsOf(90))
    const exact = await next(full, [5])
    await full.dispose()
    for (const [dtype, tolerance] of [
      ['fp16', 5e-3],
      ['bf16', 5e-2],
    ] as const) {
      const cache = model.createKvCache({ maxTokens: 200, dtype })
      await model.forwardWithKvCache(idsOf(90), cache, { logits: 'none' })
      const logits = await next(cache, [5])
      expectClose(logits, exact, tolerance, tolerance)
      expect(logits).not.toEqual(exact)
      await cache.dispose()
    }
  })

  test('a full cache takes no token more, and stays what it was', async () => {
    const cache = await cacheOf(idsOf(10), 12)
    await expect(next(cache, [1, 2, 3])).rejects.toMatchObject({
      code: 'CACHE_FULL',
      message: 'the KV cache holds 10 of 12 tokens and has no room for 3 more',
    })
    expect(cache.seqLen).toBe(10)
    const fresh = await cacheOf(idsOf(10))
    expect(await next(cache, [1, 2])).toEqual(await next(fresh, [1, 2]))
    await Promise.all([cache.dispose(), fresh.dispose()])
  })
})

describe('fork', () => {
  test('each continuation is that of a cache of its own, whoever writes first', async () => {
    const original = await cacheOf(idsOf(70))
    const [a, b] = [await original.fork(), await original.fork()]
    await next(a, [1, 2, 3])
    await next(original, [4, 5])
    await next(b, [6])
    const c = await a.fork()
    await next(c, [7, 8])
    await next(a, [60])
    for (const [cache, ...chunks] of [
      [a, [1, 2, 3], [60]],
      [original, [4, 5]],
      [b, [6]],
      [c, [1, 2, 3], [7, 8]],
    ] as [KvCache, ...number[][]][]) {
      // In the same chunks, so that every sum runs in the same order.
      const fresh = await cacheOf(idsOf(70))
      for (const ids of chunks) await next(fresh, ids)
      expect(await next(cache, [9])).toEqual(await next(fresh, [9]))
      await Promise.all([cache.dispose(), fresh.dispose()])
    }
    expect((await model.memory()).cache).toBe(0)
  })

  test('shares pages until one is written', async () => {
    const original = await cacheOf(idsOf(130))
    const alone = (await model.memory()).cache
    const fork = await original.fork()
    expect((await model.memory()).cache).toBe(alone)
    await next(fork, [1])
    // Only the third page, into which the token goes, was copied.
    expect((await model.memory()).cache).toBe((alone / 3) * 4)
    await Promise.all([original.dispose(), fork.dispose()])
  })

  test('outlives its original, and a cut in one does not reach the other', async () => {
    const original = await cacheOf(idsOf(80))
    const fork = await original.fork()
    await original.truncate(10)
    await next(original, [50, 51, 52])
    await original.dispose()
    const fresh = await cacheOf(idsOf(80))
    expect(await next(fork, [2])).toEqual(await next(fresh, [2]))
    await Promise.all([fork.dispose(), fresh.dispose()])
  })
})

describe('files', () => {
  const path = () => join(folder, 'cache')

  test.each([0, 1, 64, 100])('a cache of %i tokens is the same after save and restore', async (count) => {
    const cache = await cacheOf(idsOf(count))
    await cache.save(path())
    expect(readFileSync(path())).toHaveLength(headerBytes + count * tokenBytes)
    const other = await cacheOf(idsOf(33, 9))
    await other.restore(path())
    expect(other.seqLen).toBe(count)
    expect(await next(other, [4, 2])).toEqual(await next(cache, [4, 2]))
    // Saved again it is the same file, byte for byte; nothing else is left in the folder.
    await other.truncate(count)
    const first = readFileSync(path())
    await other.save(path())
    expect(readFileSync(path())).toEqual(first)
    expect(listFolder(folder)).toEqual(['cache'])
    await Promise.all([cache.dispose(), other.dispose()])
  })

  /** What a cache with 20 tokens says to the file, after which it must be as it was. */
  const refusal = async (of = model, maxTokens = 200): Promise<unknown> => {
    const cache = of.createKvCache({ maxTokens })
    await next(cache, idsOf(20), of)
    const expected = await next(cache, [1], of)
    await cache.truncate(20)
    const error = await cache.restore(path()).then(
      () => 'restored',
      (reason: unknown) => reason,
    )
    expect(cache.seqLen).toBe(20)
    expect(await next(cache, [1], of)).toEqual(expected)
    await cache.dispose()
    return error
  }

  beforeEach(async () => {
    const cache = await cacheOf(idsOf(90))
    await cache.save(path())
    await cache.dispose()
  })

  test('refuses a file of more tokens than it has room for', async () => {
    expect(await refusal(model, 89)).toMatchObject({
      code: 'CACHE_FULL',
      message: `${path()} holds 90 tokens, this cache has room for 89`,
    })
  })

  test.each([
    [{ numHiddenLayers: 3 }, 'its num_hidden_layers is 2, this model has 3'],
    [{ numKeyValueHeads: 4 }, 'its num_key_value_heads is 2, this model has 4'],
    [{ ropeTheta: 5e6 }, 'its rope_theta is 10000, this model has 5000000'],
    [{ rmsNormEps: 1e-5 }, 'its rms_norm_eps is'],
  ])('refuses the file of a model without %j', async (change, message) => {
    const other = await tinyModel({}, { ...tinyConfig, ...change })
    expect(await refusal(other)).toMatchObject({
      code: 'STATE_MISMATCH',
      message: expect.stringContaining(`${path()} was saved from another model: ${message}`),
    })
    await other.dispose()
  })

  test('refuses a file of another dtype', async () => {
    const cache = model.createKvCache({ maxTokens: 100, dtype: 'bf16' })
    await expect(cache.restore(path())).rejects.toMatchObject({
      code: 'STATE_MISMATCH',
      message: expect.stringContaining('holds float32, this cache bfloat16'),
    })
    expect(cache.seqLen).toBe(0)
    await cache.dispose()
  })

  test.each([0, 7, headerBytes - 1, headerBytes, headerBytes + 64 * tokenBytes, headerBytes + 90 * tokenBytes - 1])(
    'refuses a file cut to %i bytes',
    async (bytes) => {
      truncateSync(path(), bytes)
      expect(await refusal()).toMatchObject({ code: 'FILE_TRUNCATED', message: expect.stringContaining(path()) })
    },
  )

  test('refuses a file that goes on', async () => {
    writeFileSync(path(), Buffer.concat([readFileSync(path()), Buffer.alloc(1)]))
    expect(await refusal()).toMatchObject({ code: 'STATE_MISMATCH', message: expect.stringContaining('asks for') })
  })

  test.each([
    ['another magic', 0, 0x58, 'is not a saved KV cache'],
    ['another version', 8, 2, 'has version 2, this build reads version 1'],
    ['an unknown dtype', 12, 9, 'holds an unknown dtype'],
    ['another page size', 16, 32, 'its page size is 32'],
    ['a length below zero', 31, 0xff, 'claims -'],
    ['a length of 2^56 and more', 31, 0x01, 'this cache has room for 200'],
  ])('refuses %s', async (_, offset, byte, message) => {
    const bytes = readFileSync(path())
    bytes[offset] = byte
    writeFileSync(path(), bytes)
    expect(await refusal()).toMatchObject({
      code: expect.stringMatching(/^(STATE_MISMATCH|CACHE_FULL)$/),
      message: expect.stringContaining(message),
    })
  })

  test('refuses what is not there or cannot be read', async () => {
    const cache = await cacheOf(idsOf(3))
    await expect(cache.restore(join(folder, 'nothing'))).rejects.toMatchObject({
      code: 'IO_FAILED',
      message: expect.stringContaining('No such file'),
    })
    await expect(cache.restore(folder)).rejects.toMatchObject({ code: 'IO_FAILED' })
    await expect(cache.restore(3 as never)).rejects.toThrow('Expected a path for path but received 3')
    await expect(cache.save('')).rejects.toThrow('Expected a path for path but received ""')
    await cache.dispose()
  })

  test.each([
    ['key', headerBytes],
    // Values of a layer follow its keys: [L, 2, KV, 64 positions, D] in the first page.
    ['value', headerBytes + (64 * tokenBytes) / 4],
  ])('a NaN %s that the file brings in is an error at the next token, not a token', async (_, offset) => {
    const bytes = readFileSync(path())
    bytes.writeFloatLE(NaN, offset)
    writeFileSync(path(), bytes)
    const cache = model.createKvCache({ maxTokens: 200 })
    await cache.restore(path())
    await expect(model.generate([1], { cache }).next()).rejects.toMatchObject({ code: 'NON_FINITE_LOGITS' })
    await cache.dispose()
  })

  test('a failed save leaves the older file', async () => {
    copyFileSync(path(), join(folder, 'older'))
    const cache = await cacheOf(idsOf(5))
    await expect(cache.save(join(folder, 'no', 'cache'))).rejects.toMatchObject({ code: 'IO_FAILED' })
    await expect(cache.save(folder)).rejects.toMatchObject({ code: 'IO_FAILED' })
    expect(readFileSync(path())).toEqual(readFileSync(join(folder, 'older')))
    expect(listFolder(folder)).toEqual(['cache', 'older'])
    await cache.dispose()
  })
})
