/** Needs a CUDA device: `npm run test:gpu`. A whole model against the CPU with the same weights: what it computes. */
import {
  compareForwardPaths,
  type ForwardOptions,
  type InitializeOptions,
  type KvCache,
  type Qwen3Config,
  type Qwen3Nvfp4Model,
  type TokenIds,
} from 'qwen3-nvfp4'
import {
  activationBounds,
  cpuModel,
  denseTwin,
  describeOnGpu,
  device,
  gpuConfig,
  gpuModel,
  leads,
  tokensOf,
  top,
  untiedConfig,
  wideConfig,
} from '../support/gpu'
import { expectSameBytes, seededValues } from '../support/native-ops'
import { expectSimilar } from '../support/similarity'

/** Logits [rows, V] of a pass without a cache. */
async function logitsOf(model: Qwen3Nvfp4Model, ids: TokenIds, options: ForwardOptions = {}): Promise<Float32Array> {
  await using result = await model.forward(ids, options)
  return result.logits.toFloat32Array()
}

/** Logits [T, V] of the tokens behind those in a cache. */
async function cachedLogits(model: Qwen3Nvfp4Model, ids: TokenIds, cache: KvCache): Promise<Float32Array> {
  await using result = await model.forwardWithKvCache(ids, cache, { logits: 'all' })
  return result.logits.toFloat32Array()
}

const row = (logits: Float32Array, t: number, V = gpuConfig.vocabSize) => logits.subarray(t * V, (t + 1) * V)

const cases: [string, InitializeOptions, Qwen3Config][] = [
  ['NVFP4, tied', {}, gpuConfig],
  ['NVFP4 of one level, untied', { scales: 'one-level' }, untiedConfig],
  ['bf16, tied', { weights: 'bf16' }, gpuConfig],
  ['fp16, untied', { weights: 'fp16' }, untiedConfig],
  ['fp32, untied', { weights: 'fp32' }, untiedConfig],
]

describeOnGpu('forward', () => {
  describe.each(cases)('of %s weights', (_, options, config) => {
    let gpu: Qwen3Nvfp4Model
    let cpu: Qwen3Nvfp4Model
    beforeAll(async () => {
      gpu = await gpuModel(options, config)
      cpu = await cpuModel(options, config)
    })
    afterAll(async () => {
      for (const model of [gpu, cpu]) await model?.dispose()
    })

    test('has the weights of the CPU', async () => {
      expect([gpu.device, cpu.device]).toEqual([device, 'cpu'])
      for (const { name } of cpu.parameters()) {
        expectSameBytes(await gpu.parameter(name)!.read(), await cpu.parameter(name)!.read())
      }
    })

    // Below and above what the matrix-vector products, a page of 64 and two of them hold.
    test.each([1, 7, 8, 9, 64, 65, 130])('gives logits and hidden states of %i tokens', async (T) => {
      const ids = tokensOf(T)
      const request = { logits: 'all', hiddenStates: true } as const
      await using actual = await gpu.forward(ids, request)
      await using expected = await cpu.forward(ids, request)
      expect(actual.hiddenStates).toHaveLength(config.numHiddenLayers + 1)
      for (const [i, state] of actual.hiddenStates.entries()) {
        const [a, b] = [await state.toFloat32Array(), await expected.hiddenStates[i]!.toFloat32Array()]
        expectSimilar(`hidden state ${i}`, a, b, activationBounds)
      }
      const [a, b] = [await actual.logits.toFloat32Array(), await expected.logits.toFloat32Array()]
      expectSimilar('logits', a, b, activationBounds)

      const last = await logitsOf(gpu, ids)
      expectSimilar("logits 'last'", last, b.subarray(b.length - config.vocabSize), activationBounds)
    })

    test('gives samples packed into one sequence what each has alone', async () => {
      const samples = [tokensOf(70, 1), tokensOf(1, 2), tokensOf(33, 3), tokensOf(150, 4)]
      const segments = samples.flatMap((sample, i) => sample.map(() => i))
      const packed = await logitsOf(gpu, samples.flat(), { segments, logits: 'all' })
      let first = 0
      for (const sample of samples) {
        const rows = packed.subarray(first * config.vocabSize, (first + sample.length) * config.vocabSize)
        expectSimilar('logits', rows, await logitsOf(cpu, sample, { logits: 'all' }), activationBounds)
        first += sample.length
      }
    })

    test('gives each sequence of a batch what it has alone, and hides what the mask hides', async () => {
      const ids = [tokensOf(33, 1), tokensOf(33, 5)]
      // The second sequence is padded in front, and once inside.
      const attentionMask = ids.map((tokens, b) => tokens.map((_, t) => (b === 1 && (t < 5 || t === 20) ? 0 : 1)))
      for (const options of [{}, { attentionMask }] as const) {
        const [a, b] = [
          await logitsOf(gpu, ids, { logits: 'all', ...options }),
          await logitsOf(cpu, ids, { logits: 'all', ...options }),
        ]
        expectSimilar('logits', a, b, activationBounds)
        const last = await logitsOf(gpu, ids, options)
        for (const s of [0, 1]) {
          expectSimilar(
            'a last row',
            row(last, s, config.vocabSize),
            row(b, 33 * (s + 1) - 1, config.vocabSize),
            activationBounds,
          )
        }
      }
      const other = ids.map((tokens, b) => tokens.map((id, t) => (b === 1 && t === 20 ? 3 : id)))
      const [hidden, changed] = [
        await logitsOf(gpu, ids, { attentionMask }),
        await logitsOf(gpu, other, { attentionMask }),
      ]
      expectSameBytes(changed, hidden)
      const [unmasked, unmaskedOther] = [await logitsOf(gpu, ids), await logitsOf(gpu, other)]
      expect(() => expectSameBytes(unmasked, unmaskedOther)).toThrow('the same bytes')
    })
  })

  test('adds the residual of NVFP4 weights', async () => {
    await using model = await gpuModel()
    await using optimizer = model.createOptimizer({ lr: 3e-3, weights: 'nvfp4+residual' })
    for (let i = 0; i < 3; i++) await optimizer.trainStep({ ids: tokensOf(64, i), labels: tokensOf(64, i) })
    await using twin = await denseTwin(model)
    for (const T of [1, 8, 65]) {
      const [a, b] = [
        await logitsOf(model, tokensOf(T), { logits: 'all' }),
        await logitsOf(twin, tokensOf(T), { logits: 'all' }),
      ]
      expectSimilar(`logits of ${T} tokens`, a, b, activationBounds)
    }
  })

  test('gives equal bytes twice, and in another model of the same weights', async () => {
    await using first = await gpuModel()
    await using second = await gpuModel()
    for (const ids of [tokensOf(5), tokensOf(130), [tokensOf(65, 1), tokensOf(65, 2)]]) {
      const expected = await logitsOf(first, ids, { logits: 'all' })
      expectSameBytes(await logitsOf(first, ids, { logits: 'all' }), expected)
      expectSameBytes(await logitsOf(second, ids, { logits: 'all' }), expected)
    }
  })

  test('agrees down the reference path, the training path and the cached path', async () => {
    await using model = await gpuModel()
    const ids = tokensOf(77)
    const comparison = await compareForwardPaths(model, ids)
    expect(comparison.firstDivergence).toBeNull()
    for (const path of [comparison.reference, comparison.training, comparison.cached]) {
      expect(path.layers).toHaveLength(gpuConfig.numHiddenLayers + 1)
      expect([path.nanCount, path.infinityCount]).toEqual([0, 0])
      for (const { cosine } of [...path.layers, path.logits])
        expect(cosine).toBeGreaterThanOrEqual(activationBounds.cosine!)
    }
    // The rank of the first two is decided where they are further apart than the errors of both paths.
    if (leads(await logitsOf(model, ids), 0.1)) expect(comparison.sameTopToken).toBe(true)
    const strict = await compareForwardPaths(model, ids, { tolerance: 1e-12, chunkTokens: 40 })
    expect(strict.firstDivergence?.layer).toBeLessThanOrEqual(gpuConfig.numHiddenLayers)
  })
})

describeOnGpu('the key/value cache', () => {
  let model: Qwen3Nvfp4Model
  let cpu: Qwen3Nvfp4Model
  beforeAll(async () => {
    model = await gpuModel()
    cpu = await cpuModel()
  })
  afterAll(async () => {
    for (const each of [model, cpu]) await each?.dispose()
  })
  const cacheOf = async (ids: number[]) => {
    const cache = model.createKvCache({ maxTokens: 400 })
    if (ids.length > 0) await (await model.forwardWithKvCache(ids, cache, { logits: 'none' })).dispose()
    return cache
  }

  test.each([
    ['one by one', [1, 1, 1, 1, 1]],
    ['of 5', [5, 5, 5, 5]],
    ['of 9', [9, 9, 9]],
    ['of 64', [64, 64, 64]],
    ['of 65', [65, 65, 65]],
    ['of all sizes, across pages', [9, 1, 64, 5, 1, 65, 1, 9, 1, 1]],
    ['of one token behind a full page', [64, 1, 63, 1, 1]],
  ])('gives the logits of the whole to chunks %s', async (_, chunks) => {
    const total = chunks.reduce((sum, count) => sum + count, 0)
    const ids = tokensOf(total)
    const expected = await logitsOf(cpu, ids, { logits: 'all' })
    await using cache = await cacheOf([])
    let begin = 0
    for (const count of chunks) {
      const logits = await cachedLogits(model, ids.slice(begin, begin + count), cache)
      const [from, to] = [begin, begin + count].map((t) => t * gpuConfig.vocabSize)
      expectSimilar(`tokens ${begin} to ${begin + count - 1}`, logits, expected.subarray(from, to), activationBounds)
      begin += count
      expect(cache.seqLen).toBe(begin)
    }
  })

  test('gives equal bytes twice', async () => {
    const run = async () => {
      await using cache = await cacheOf(tokensOf(70))
      return { chunk: await cachedLogits(model, tokensOf(9, 2), cache), one: await cachedLogits(model, [17], cache) }
    }
    expectSameBytes(await run(), await run())
  })

  test('goes its own way in every fork, whoever writes first', async () => {
    await using original = await cacheOf(tokensOf(70))
    await using fork = await original.fork()
    const ofFork = await cachedLogits(model, [1, 2, 3], fork)
    const ofOriginal = await cachedLogits(model, [4, 5], original)
    await using fresh = await cacheOf(tokensOf(70))
    await using other = await fresh.fork()
    expectSameBytes(await cachedLogits(model, [4, 5], fresh), ofOriginal)
    expectSameBytes(await cachedLogits(model, [1, 2, 3], other), ofFork)
    expect([original.seqLen, fork.seqLen]).toEqual([72, 73])
    await original.dispose()
    expectSameBytes(await cachedLogits(model, [9], fork), await cachedLogits(model, [9], other))
  })

  test.each([0, 1, 63, 64, 65, 129])('cut to %i tokens goes on as if the rest had never been', async (keep) => {
    await using cache = await cacheOf(tokensOf(130))
    await cache.truncate(keep)
    await using fresh = await cacheOf(tokensOf(130).slice(0, keep))
    // Close, not equal: the keys of a longer chunk come from products in another order.
    const [a, b] = [await cachedLogits(model, [3, 1, 4], cache), await cachedLogits(model, [3, 1, 4], fresh)]
    expectSimilar('logits', a, b, activationBounds)
    expect(cache.seqLen).toBe(keep + 3)
  })

  test('is full when it is full, and stays what it was', async () => {
    await using cache = model.createKvCache({ maxTokens: 12 })
    await cachedLogits(model, tokensOf(10), cache)
    await expect(model.forwardWithKvCache([1, 2, 3], cache)).rejects.toMatchObject({ code: 'CACHE_FULL' })
    await using fresh = model.createKvCache({ maxTokens: 12 })
    await cachedLogits(model, tokensOf(10), fresh)
    expectSameBytes(await cachedLogits(model, [1, 2], cache), await cachedLogits(model, [1, 2], fresh))
  })

  const collect = async (options: Parameters<typeof model.generate>[1], prompt = tokensOf(20), from = model) => {
    const tokens = []
    for await (const token of from.generate(prompt, { maxRepeats: 0, ...options })) tokens.push(token)
    return tokens
  }

  test.each([
    ['', gpuConfig],
    [', with rows of 512', wideConfig],
  ])('generates greedily what stepping by hand chooses%s', async (_, config) => {
    await using model = await gpuModel({}, config)
    const produced = await collect({ maxTokens: 70 }, tokensOf(20), model)
    await using cache = model.createKvCache({ maxTokens: 100 })
    let logits = await cachedLogits(model, tokensOf(20), cache)
    for (const [i, { id }] of produced.entries()) {
      const last = row(logits, logits.length / gpuConfig.vocabSize - 1)
      // Where it is decided: generating may sum a step in another order than forwardWithKvCache.
      if (leads(last, 0.1)) expect([i, id]).toEqual([i, top(last)])
      logits = await cachedLogits(model, [id], cache)
    }
    expect(produced.at(-1)).toMatchObject({ index: 69, finishReason: 'max-tokens' })
  })

  test('draws the same tokens from the same seed, others from another', async () => {
    const draw = async (seed: number) =>
      (await collect({ maxTokens: 40, temperature: 1.2, topK: 50, topP: 0.98, minP: 0.001, seed, topLogprobs: 3 })).map(
        ({ id, logprob, topLogprobs }) => ({ id, logprob, topLogprobs }),
      )
    const first = await draw(1)
    expect(await draw(1)).toEqual(first)
    expect(await draw(2)).not.toEqual(first)
    for (const { logprob, topLogprobs } of first) {
      expect(logprob).toBeLessThanOrEqual(0)
      expect(topLogprobs).toHaveLength(3)
    }
  })

  test('ends at a stop token, at the end of the cache, and where the loop is left', async () => {
    const free = await collect({ maxTokens: 8, temperature: 1, seed: 3 })
    const stop = free[3]!.id
    const end = free.findIndex(({ id }) => id === stop)
    const stopped = await collect({ maxTokens: 8, temperature: 1, seed: 3, stopTokens: [stop] })
    expect(stopped.map(({ id }) => id)).toEqual(free.slice(0, end + 1).map(({ id }) => id))
    expect(stopped.at(-1)!.finishReason).toBe('stop-token')

    await using short = model.createKvCache({ maxTokens: 24 })
    const full = await collect({ maxTokens: 20, cache: short })
    expect([full.length, full.at(-1)!.finishReason, short.seqLen]).toEqual([5, 'cache-full', 24])

    await using cache = model.createKvCache({ maxTokens: 5000 })
    for await (const { index } of model.generate(tokensOf(20), { cache, maxTokens: 4000, maxRepeats: 0 })) {
      if (index === 2) break
    }
    expect(cache.seqLen).toBeGreaterThanOrEqual(22)
    expect(cache.seqLen).toBeLessThan(4000)
    await cache.truncate(20)
    expect(await collect({ maxTokens: 3, cache }, [5])).toHaveLength(3)
  })

  test('goes on from a cache with only the new tokens', async () => {
    const whole = await collect({ maxTokens: 4, temperature: 0.5, seed: 1 }, tokensOf(80))
    await using cache = await cacheOf(tokensOf(80).slice(0, 70))
    const rest = await collect({ maxTokens: 4, temperature: 0.5, seed: 1, cache }, tokensOf(80).slice(70))
    expect(rest).toHaveLength(whole.length)
    expect(cache.seqLen).toBe(83)
  })

  test('has no token for logits that are not finite', async () => {
    await using broken = await gpuModel({ weights: 'fp32' })
    await broken.parameter('model.norm.weight')!.write(new Float32Array(gpuConfig.hiddenSize).fill(3e38))
    await expect(broken.generate([1]).next()).rejects.toMatchObject({ code: 'NON_FINITE_LOGITS' })
    expect(await collect({ maxTokens: 2 })).toHaveLength(2)
  })
})

describeOnGpu('linearSte', () => {
  const [N, K] = [72, 96]
  // One token, few, many; rows of dy that are no multiple of 16 bytes.
  test.each([
    [1, N],
    [5, 5],
    [40, N],
    [9, 33],
  ])('gives y and both gradients of %i tokens and %i rows', async (T, rows) => {
    await using gpu = await gpuModel()
    await using cpu = await cpuModel()
    const [x, w, dy] = [seededValues(T * K, 1), seededValues(rows * K, 2), seededValues(T * rows, 3)]
    for (const options of [{}, { scales: 'one-level', scaleRule: 'four-over-six' }] as const) {
      await using actual = await gpu.linearSte(x, w, { rows, cols: K, ...options })
      await using expected = await cpu.linearSte(x, w, { rows, cols: K, ...options })
      // The weight has the same bytes, so what differs is the rounding of x, dy and dInput to bf16: once or twice.
      const bounds = { relativeError: 4e-3 }
      expectSimilar('y', actual.y, expected.y, bounds)
      const [a, b] = [await actual.backward(dy), await expected.backward(dy)]
      expectSimilar('dInput', a.dInput, b.dInput, bounds)
      expectSimilar('dWeight', a.dWeight, b.dWeight, bounds)
      expectSameBytes(await actual.backward(dy), a)
    }
  })

  test('uses a matrix of the model as it is stored, and refuses to be stale', async () => {
    await using gpu = await gpuModel({ weights: 'fp32' })
    await using cpu = await cpuModel({ weights: 'fp32' })
    const name = 'model.layers.1.mlp.down_proj.weight'
    const input = seededValues(3 * gpuConfig.intermediateSize, 4)
    await using actual = await gpu.linearSte(input, name)
    await using expected = await cpu.linearSte(input, name)
    // fp32 weights round to bf16 in products.
    expectSimilar('y', actual.y, expected.y, { relativeError: 4e-3 })
    await gpu.parameter(name)!.write(await gpu.parameter(name)!.read())
    await expect(actual.backward(new Float32Array(actual.y.length))).rejects.toMatchObject({ code: 'STALE_GRADIENT' })
  })
})
