/**
 * Needs a CUDA device: `npm run test:gpu`. Memory that was estimated, that is not there, and that is given back; work that
 * is aborted, or whose model is disposed meanwhile.
 */
import { type InitializeOptions, type MemoryOptions, type Qwen3Config, Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { expectSameBytes } from '../support/native-ops'
import { expectKeptGradients, expectWithin5Percent } from '../support/memory-estimate'
import { describeOnGpu, device, gpuConfig, gpuModel as anyModel, tokensOf } from '../support/gpu'

/** A device that no other test file uses, even where they share one process: what they left there is not counted. */
const threads = 3
const gpuModel = (options: InitializeOptions = {}, config?: Qwen3Config) => anyModel({ threads, ...options }, config)

const ids = Array.from({ length: 4 }, (_, b) => tokensOf(512, b))
const trainOn = (optimizer: ReturnType<Qwen3Nvfp4Model['createOptimizer']>, options = {}) =>
  optimizer.trainStep({ ids, labels: ids }, options)

describeOnGpu('estimateMemory', () => {
  /** So large that what is left out of an estimate is far below 5 %. */
  const config = { ...gpuConfig, hiddenSize: 1024, intermediateSize: 3072, vocabSize: 32_000, numHiddenLayers: 4 }
  const estimate = (options: Partial<MemoryOptions>) =>
    Qwen3Nvfp4Model.estimateMemory(config, { mode: 'training', device, threads, batch: 4, tokens: 512, ...options })

  test.each([
    { recompute: 'all', moments: 'nvfp4', optimizerWeights: 'nvfp4' },
    { recompute: 'cheap', moments: 'int8', optimizerWeights: 'nvfp4+residual' },
    { recompute: 'none', moments: 'bf16', optimizerWeights: 'bf16' },
    { recompute: 'none', moments: 'fp32', optimizerWeights: 'fp32', stepChunkRows: 512 },
    { recompute: 'all', moments: 'fp32', weights: 'fp32' },
  ] as const)('is within 5 %% of the peak of a fused training step, %j', async (modes) => {
    const { moments, recompute, stepChunkRows } = modes
    const { weights, optimizerWeights } = { weights: 'nvfp4', optimizerWeights: 'nvfp4', ...modes } as const
    await using model = await gpuModel({ weights }, config)
    await using optimizer = model.createOptimizer({ moments, weights: optimizerWeights, stepChunkRows })
    await optimizer.stateBytes()
    model.resetMemoryPeak()
    await trainOn(optimizer, { recompute })
    const memory = await model.memory()
    const expected = estimate(modes)
    expectWithin5Percent(memory.peak, expected.total)
    const kept = ({ moments, weights, scales }: typeof expected) => moments + weights + scales
    expect(kept(memory)).toBe(kept(expected))
  })

  test.each(['fp32', 'bf16', 'nvfp4'] as const)(
    'counts kept %s gradients to the byte, and is within 5 %% of the peak of steps with them',
    async (gradients) => {
      await using model = await gpuModel({}, config)
      await using optimizer = model.createOptimizer()
      await optimizer.stateBytes()
      await expectKeptGradients(model, optimizer, ids, gradients, estimate({ trainStep: false, gradients }))
    },
  )

  test.each(['nvfp4', 'bf16', 'fp32'] as const)(
    'is within 5 %% of the peak of a forward pass on %s weights',
    async (weights) => {
      await using model = await gpuModel({ weights }, config)
      model.resetMemoryPeak()
      await (await model.forward(ids)).dispose()
      const expected = estimate({ mode: 'inference', weights, cacheTokens: 0 })
      expectWithin5Percent((await model.memory()).peak, expected.total)
    },
  )

  test('counts a cache to the byte', async () => {
    await using model = await gpuModel({}, config)
    await using cache = model.createKvCache({ maxTokens: 600 })
    await (await model.forwardWithKvCache(ids[0]!, cache)).dispose()
    expect(await cache.bytes()).toBe(estimate({ mode: 'inference', cacheTokens: 512 }).cache)
  })
})

describeOnGpu('memory', () => {
  /** A vocabulary whose logits fill any GPU, over layers of nearly nothing. */
  const config: Qwen3Config = {
    ...gpuConfig,
    hiddenSize: 64,
    intermediateSize: 128,
    numHiddenLayers: 2,
    numAttentionHeads: 2,
    headDim: 32,
    vocabSize: 151_936,
  }
  const rowBytes = config.vocabSize * 4
  const many = (tokens: number) => Array.from({ length: Math.ceil(tokens / 1024) }, (_, b) => tokensOf(1024, b))
  const onGpu = device === 'cpu' ? test.skip : test
  const outOfMemory = (what: RegExp) => ({ code: 'OUT_OF_MEMORY', message: expect.stringMatching(what) })

  onGpu('that a forward pass does not find is an error with bytes, before anything is allocated', async () => {
    await using model = await gpuModel({}, config)
    const before = await model.memory()
    model.resetMemoryPeak()
    const tooMany = many(1.2 * (before.gpuTotal! / rowBytes))
    await expect(model.forward(tooMany, { logits: 'all' })).rejects.toMatchObject(
      outOfMemory(
        /forward pass of \d+ x 1024 tokens needs \d+ bytes, \d+ of them for logits, and \d+ of \d+ bytes of the GPU are free: .*logits 'last'/,
      ),
    )
    await expect(model.forward(tooMany, { gradient: true })).rejects.toMatchObject(
      outOfMemory(/forward pass with gradients of \d+ x 1024 tokens needs \d+ bytes/),
    )
    expect(await model.memory()).toMatchObject({ total: before.total, peak: before.total })
    await using result = await model.forward(tokensOf(5), { logits: 'all' })
    expect(await result.logits.toFloat32Array()).toHaveLength(5 * config.vocabSize)
  })

  onGpu('that a step does not find is an error with bytes and a remedy, before anything changed', async () => {
    await using model = await gpuModel({}, config)
    await using optimizer = model.createOptimizer()
    const batch = { ids: many(2 ** 19), labels: many(2 ** 19) }
    const small = { ids: tokensOf(64), labels: tokensOf(64) }
    const { loss } = await optimizer.trainStep(small, { lr: 0 })
    const { gpuFree } = await model.memory()
    // Leaves about 1.5 GiB, of which the tape of half a million tokens needs more.
    const hog = await model.forward(many((gpuFree! - 2 ** 31) / rowBytes), { logits: 'all' })
    const before = await model.memory()
    await expect(optimizer.trainStep(batch, { recompute: 'none' })).rejects.toMatchObject(
      outOfMemory(
        /training step of 512 x 1024 tokens needs \d+ bytes and \d+ of \d+ bytes of the GPU are free: take fewer tokens at once, or recompute 'all', which saves \d+ bytes/,
      ),
    )
    expect((await model.memory()).total).toBe(before.total)
    // The same weights and step count as if it had not been asked for.
    expect(await optimizer.trainStep(small, { lr: 0 })).toMatchObject({ loss, step: 2 })
    await hog.dispose()
    expect(await optimizer.trainStep(small)).toMatchObject({ loss, step: 3 })
  })

  onGpu('that a backward pass does not find leaves earlier sums as they are', async () => {
    await using model = await gpuModel({}, { ...config, vocabSize: 1000 })
    await using filler = await gpuModel({}, config)
    await (await model.loss(tokensOf(64), tokensOf(64))).backward()
    const parameter = model.parameter('model.norm.weight')!
    const kept = await parameter.grad()
    const large = many(2 ** 20)
    const loss = await model.loss(large, large)
    const { gpuFree } = await model.memory()
    const hog = await filler.forward(many((gpuFree! - 6e8) / rowBytes), { logits: 'all' })
    await expect(loss.backward()).rejects.toMatchObject(
      outOfMemory(/backward pass of 1024 x 1024 tokens needs \d+ bytes/),
    )
    expect(await parameter.grad()).toEqual(kept)
    await hog.dispose()
    await (await model.loss(tokensOf(64), tokensOf(64))).backward()
    expect(await parameter.grad()).not.toEqual(kept)
  })

  test('is free again when everything is disposed', async () => {
    await using first = await gpuModel()
    await (await first.forward(tokensOf(100), { logits: 'all' })).dispose()
    const before = await first.memory()
    for (let i = 0; i < 10; i++) {
      const model = await gpuModel({ seed: i })
      const result = await model.forward(tokensOf(70), { logits: 'all', hiddenStates: true })
      const cache = model.createKvCache({ maxTokens: 300 })
      await (await model.forwardWithKvCache(tokensOf(70), cache)).dispose()
      const fork = await cache.fork()
      for await (const _ of model.generate([1], { cache: fork, maxTokens: 5, maxRepeats: 0 }));
      const optimizer = model.createOptimizer({ weights: 'nvfp4+residual' })
      await trainOn(optimizer)
      const loss = await model.loss(ids, ids)
      await loss.backward()
      await optimizer.step()
      const ste = await model.linearSte(new Float32Array(32), new Float32Array(320), { rows: 10, cols: 32 })
      await ste.backward(new Float32Array(10))
      for (const object of [ste, result, cache, fork, optimizer, loss, model]) await object.dispose()
      expect((await first.memory()).total).toBe(before.total)
    }
    // The pool keeps nothing that was freed either: every disposal of something large trims it.
    const after = await first.memory()
    expect(after.gpuFree ?? 0).toBeGreaterThanOrEqual((before.gpuFree ?? 0) - 64 * 2 ** 20)
  })
})

describeOnGpu('work that is stopped', () => {
  const reason = new Error('enough')
  const config = { ...gpuConfig, numHiddenLayers: 8 }

  /** Runs `work` behind calls that keep the lane busy, and aborts it before they can have ended. */
  async function abort(model: Qwen3Nvfp4Model, work: (signal: AbortSignal) => Promise<unknown>): Promise<unknown> {
    const controller = new AbortController()
    const busy = Array.from({ length: 20 }, () => model.forward(ids).then((result) => result.dispose()))
    const run = work(controller.signal).then(
      () => 'finished',
      (error: unknown) => error,
    )
    controller.abort(reason)
    await Promise.all(busy)
    return run
  }

  test('rejects with the reason of the signal, and what comes next is as if it had never been', async () => {
    await using model = await gpuModel({}, config)
    await using optimizer = model.createOptimizer({ lr: 1e-3 })
    await optimizer.stateBytes()
    await using twin = await gpuModel({}, config)
    await using steps = twin.createOptimizer({ lr: 1e-3 })
    expect(await abort(model, (signal) => trainOn(optimizer, { signal }))).toBe(reason)
    expect(await abort(model, (signal) => model.forward(ids, { signal }))).toBe(reason)
    expect(await abort(model, (signal) => model.loss(ids, ids, { signal }))).toBe(reason)
    await using loss = await model.loss(ids, ids)
    expect(await abort(model, (signal) => loss.backward({ signal }))).toBe(reason)
    expect(await model.parameter('model.norm.weight')!.grad()).toBeNull()
    for (let i = 0; i < 2; i++) expect(await trainOn(optimizer)).toEqual(await trainOn(steps))
  })

  test('leaves a cache consistent', async () => {
    await using model = await gpuModel({}, config)
    await using cache = model.createKvCache({ maxTokens: 2000 })
    await (await model.forwardWithKvCache(tokensOf(3), cache)).dispose()
    expect(await abort(model, (signal) => model.forwardWithKvCache(tokensOf(700), cache, { signal }))).toBe(reason)
    expect(cache.seqLen).toBe(3)

    const controller = new AbortController()
    const generate = async () => {
      const options = { cache, maxTokens: 1000, maxRepeats: 0, signal: controller.signal }
      for await (const { index } of model.generate([5], options)) if (index === 2) controller.abort(reason)
    }
    await expect(generate()).rejects.toBe(reason)
    expect(cache.seqLen).toBeGreaterThanOrEqual(6)
    expect(cache.seqLen).toBeLessThan(1004)
    await cache.truncate(3)
    await using fresh = model.createKvCache({ maxTokens: 2000 })
    await (await model.forwardWithKvCache(tokensOf(3), fresh)).dispose()
    const next = async (of: typeof cache) => {
      await using result = await model.forwardWithKvCache([9, 8], of)
      return result.logits.toFloat32Array()
    }
    expectSameBytes(await next(cache), await next(fresh))
  })

  test('by dispose is waited for', async () => {
    const model = await gpuModel({}, config)
    const optimizer = model.createOptimizer()
    await optimizer.stateBytes()
    const order: string[] = []
    const running = [model.forward(ids), trainOn(optimizer)].map((run) => run.then(() => order.push('done')))
    // The step is on its way once its microtasks ran.
    await new Promise((done) => setTimeout(done, 0))
    const disposals = [model.dispose(), model.dispose()].map((run) => run.then(() => order.push('disposed')))
    await Promise.all([...running, ...disposals])
    expect(order).toEqual(['done', 'done', 'disposed', 'disposed'])
    await expect(model.forward([1])).rejects.toMatchObject({ code: 'DISPOSED' })
    await optimizer.dispose()
    await using other = await gpuModel()
    await (await other.forward([1])).dispose()
  })
})
