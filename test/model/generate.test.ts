import type { GeneratedToken, GenerateOptions, Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { idsOf, tinyConfig, tinyModel } from '../support/tiny-model'

describe('generate', () => {
  let model: Qwen3Nvfp4Model
  beforeAll(async () => {
    model = await tinyModel()
  })
  afterAll(() => model.dispose())

  const collect = async (options: GenerateOptions, prompt: number[] = idsOf(5)) => {
    const tokens: GeneratedToken[] = []
    for await (const token of model.generate(prompt, { maxRepeats: 0, ...options })) tokens.push(token)
    return tokens
  }

  test('greedy tokens are the largest logits of the uncached forward, with their log-probabilities', async () => {
    const tokens = await collect({ maxTokens: 6, topLogprobs: 3 })
    const ids = idsOf(5)
    for (const [index, token] of tokens.entries()) {
      const logits = await (await model.forward(ids)).logits.toFloat32Array()
      const best = logits.indexOf(Math.max(...logits))
      const lse = Math.log(logits.reduce((sum, x) => sum + Math.exp(x), 0))
      expect(token).toMatchObject({ id: best, index })
      expect(token.logprob).toBeCloseTo(logits[best]! - lse, 4)
      expect(token.topLogprobs).toHaveLength(3)
      expect(token.topLogprobs![0]).toEqual({ id: token.id, logprob: token.logprob })
      ids.push(token.id)
    }
    expect(tokens.map(({ finishReason }) => finishReason)).toEqual([...Array(5).fill(undefined), 'max-tokens'])
  })

  test('the same seed draws the same tokens, another seed others', async () => {
    const draw = async (seed: number) =>
      (await collect({ maxTokens: 12, temperature: 1.5, topK: 50, topP: 0.99, minP: 0.001, seed })).map(({ id }) => id)
    expect(await draw(1)).toEqual(await draw(1))
    expect(await draw(1)).not.toEqual(await draw(2))
  })

  test('ends after a stop token, which is reported and not in the cache', async () => {
    const free = await collect({ maxTokens: 8, temperature: 1, seed: 3 })
    const stop = free[3]!.id
    const end = free.findIndex(({ id }) => id === stop)
    const cache = model.createKvCache({ maxTokens: 50 })
    const tokens = await collect({ maxTokens: 8, temperature: 1, seed: 3, stopTokens: [stop], cache })
    expect(tokens.map(({ id }) => id)).toEqual(free.slice(0, end + 1).map(({ id }) => id))
    expect(tokens.at(-1)!.finishReason).toBe('stop-token')
    expect(cache.seqLen).toBe(5 + end)
    await cache.dispose()
  })

  test('ends when the cache is full, and says so', async () => {
    const cache = model.createKvCache({ maxTokens: 9 })
    const tokens = await collect({ maxTokens: 20, cache })
    expect(tokens).toHaveLength(9 - 5 + 1)
    expect(tokens.at(-1)!.finishReason).toBe('cache-full')
    expect(cache.seqLen).toBe(9)
    await expect(collect({ maxTokens: 1, cache }, [1])).rejects.toMatchObject({ code: 'CACHE_FULL' })
    expect(cache.seqLen).toBe(9)
    await cache.dispose()
  })

  test('goes on from a cache with only the new tokens', async () => {
    const whole = await collect({ maxTokens: 4 }, idsOf(12))
    const cache = model.createKvCache({ maxTokens: 50 })
    await model.forwardWithKvCache(idsOf(12).slice(0, 7), cache, { logits: 'none' })
    const rest = await collect({ maxTokens: 4, cache }, idsOf(12).slice(7))
    expect(rest.map(({ id }) => id)).toEqual(whole.map(({ id }) => id))
    await cache.dispose()
  })

  test('leaving the loop early stops the model and frees the cache', async () => {
    const cache = model.createKvCache({ maxTokens: 5000 })
    let seen = 0
    for await (const _ of model.generate(idsOf(5), { cache, maxTokens: 4000, maxRepeats: 0 })) {
      if (++seen === 3) break
    }
    expect(cache.seqLen).toBeGreaterThanOrEqual(7)
    expect(cache.seqLen).toBeLessThan(4000)
    await cache.truncate(5)
    await cache.dispose()
  })

  test('an abort ends it with the reason of the signal', async () => {
    const controller = new AbortController()
    const reason = new Error('enough')
    const run = async () => {
      for await (const { index } of model.generate(idsOf(5), {
        maxTokens: 100_000,
        maxRepeats: 0,
        signal: controller.signal,
      })) {
        if (index === 2) controller.abort(reason)
      }
    }
    await expect(run()).rejects.toBe(reason)
  })

  test('one id again and again is an error instead of text', async () => {
    const stuck = await tinyModel({ weights: 'fp32' })
    // The final norm is zero: every logit is 0, and greedy always takes id 0.
    await stuck.parameter('model.norm.weight')!.write(new Float32Array(32))
    const run = async () => {
      for await (const _ of stuck.generate([1], { maxTokens: 100, maxRepeats: 10 }));
    }
    await expect(run()).rejects.toMatchObject({
      code: 'DEGENERATE_OUTPUT',
      message: expect.stringContaining('10 times'),
    })
    await stuck.dispose()
  })

  test('non-finite logits are an error instead of a token', async () => {
    const broken = await tinyModel({ weights: 'fp32' })
    await broken.parameter('model.norm.weight')!.write(new Float32Array(32).fill(3e38))
    await expect(broken.generate([1]).next()).rejects.toMatchObject({ code: 'NON_FINITE_LOGITS' })
    await broken.dispose()
  })

  test.each([
    [{ maxTokens: 0 }, 'Expected an integer of at least 1 for maxTokens but received 0'],
    [{ temperature: -1 }, 'Expected a finite number of at least 0 for temperature but received -1'],
    [{ topP: 0 }, 'Expected a finite number above 0 and at most 1 for topP but received 0'],
    [{ minP: 1 }, 'Expected a finite number of at least 0 and below 1 for minP but received 1'],
    [{ repetitionPenalty: 0 }, 'Expected a finite number above 0 for repetitionPenalty but received 0'],
    [{ stopTokens: [96] }, 'Expected an integer from 0 to 95 for stopTokens[0] but received 96'],
    [{ topLogprobs: 97 }, 'Expected an integer from 0 to 96 for topLogprobs but received 97'],
    [{ cache: {} }, 'Expected a KvCache for cache but received an object'],
    [{ maxToken: 3 }, 'did you mean maxTokens?'],
  ])('refuses %j before anything runs', (options, message) => {
    expect(() => model.generate([1], options as GenerateOptions)).toThrow(message)
  })

  test('refuses a batch and an empty prompt', () => {
    expect(() => model.generate([[1], [2]] as never)).toThrow('Expected one sequence for ids but received 2 sequences')
    expect(() => model.generate([])).toThrow('Expected at least one token for ids')
  })
})

describe('KvCache', () => {
  let model: Qwen3Nvfp4Model
  beforeAll(async () => {
    model = await tinyModel()
  })
  afterAll(() => model.dispose())

  const last = async (cache: ReturnType<Qwen3Nvfp4Model['createKvCache']>, ids: number[]) =>
    (await model.forwardWithKvCache(ids, cache)).logits.toFloat32Array()

  test('a fork goes its own way and leaves the original alone', async () => {
    const cache = model.createKvCache({ maxTokens: 200 })
    await last(cache, idsOf(70))
    const fork = await cache.fork()
    const a = await last(fork, [1, 2])
    await last(fork, [3])
    expect([cache.seqLen, fork.seqLen]).toEqual([70, 73])
    await last(cache, [9, 9, 9])
    await cache.truncate(70)
    expect(await last(cache, [1, 2])).toEqual(a)
    await cache.dispose()
    expect(await last(fork, [5])).toHaveLength(tinyConfig.vocabSize)
    await fork.dispose()
  })

  test.each(['fp32', 'fp16', 'bf16'] as const)('a saved %s cache goes on where it was', async (dtype) => {
    const { mkdtemp, rm } = await import('node:fs/promises')
    const { tmpdir } = await import('node:os')
    const { join } = await import('node:path')
    const folder = await mkdtemp(join(tmpdir(), 'qn-cache-'))
    const cache = model.createKvCache({ maxTokens: 100, dtype })
    await last(cache, idsOf(67))
    await cache.save(join(folder, 'cache'))
    const expected = await last(cache, [4])
    const other = model.createKvCache({ maxTokens: 100, dtype })
    await other.restore(join(folder, 'cache'))
    expect(other.seqLen).toBe(67)
    expect(await last(other, [4])).toEqual(expected)
    await expect(cache.save(join(folder, 'nowhere', 'cache'))).rejects.toMatchObject({ code: 'IO_FAILED' })
    await rm(folder, { recursive: true })
    await Promise.all([cache.dispose(), other.dispose()])
  })

  test.each([
    [{}, 'Expected an integer for maxTokens but received undefined'],
    [{ maxTokens: 0 }, 'for maxTokens but received 0'],
    [{ maxTokens: 4, dtype: 'nvfp4' }, `Expected 'fp32' | 'fp16' | 'bf16' for dtype but received "nvfp4"`],
  ])('refuses %j', (options, message) => {
    expect(() => model.createKvCache(options as never)).toThrow(message)
  })

  test('refuses to be cut longer than it is', async () => {
    const cache = model.createKvCache({ maxTokens: 10 })
    await expect(cache.truncate(1)).rejects.toThrow('Expected an integer from 0 to 0 for tokens but received 1')
    await expect(last(cache, idsOf(11))).rejects.toMatchObject({ code: 'CACHE_FULL' })
    expect(cache.seqLen).toBe(0)
    await cache.dispose()
  })
})
