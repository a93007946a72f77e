import { type MemoryOptions, Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { qwen3Of4b } from '../support/qwen3-4b'
import { expectKeptGradients, expectWithin5Percent } from '../support/memory-estimate'
import { tinyConfig, tinyModel } from '../support/tiny-model'

// Large enough that what is not counted would show beside the scratch of the threads.
const config = {
  ...tinyConfig,
  hiddenSize: 256,
  intermediateSize: 768,
  headDim: 64,
  vocabSize: 4096,
  numHiddenLayers: 3,
}
const ids = Array.from({ length: 2 }, (_, b) => Array.from({ length: 160 }, (_, t) => (t * 31 + b * 7) % 4096))

// A device that no other test file uses, even where they share one addon (QN_ADDON_PATH): what they left is not counted.
const threads = 4
const estimate = (options: Partial<MemoryOptions>) =>
  Qwen3Nvfp4Model.estimateMemory(config, { mode: 'training', batch: 2, tokens: 160, threads, ...options })

describe('estimateMemory', () => {
  test.each([
    { recompute: 'all', moments: 'nvfp4', optimizerWeights: 'nvfp4' },
    { recompute: 'cheap', moments: 'int8', optimizerWeights: 'nvfp4+residual' },
    { recompute: 'none', moments: 'bf16', optimizerWeights: 'bf16' },
    { recompute: 'all', moments: 'fp32', optimizerWeights: 'fp32' },
  ] as const)('is within 5 %% of the peak of a fused training step, %j', async (modes) => {
    const model = await tinyModel({ threads }, config)
    const optimizer = model.createOptimizer({ moments: modes.moments, weights: modes.optimizerWeights })
    model.resetMemoryPeak()
    await optimizer.trainStep({ ids, labels: ids }, { recompute: modes.recompute })
    const { peak, moments, weights, scales } = await model.memory()
    const expected = estimate(modes)
    expectWithin5Percent(peak, expected.total)
    expect(moments + weights + scales).toBe(expected.moments + expected.weights + expected.scales)
    await optimizer.dispose()
    await model.dispose()
  })

  test.each(['all', 'none'] as const)('follows what trains, recompute %s', async (recompute) => {
    const trainable = (name: string) => name.startsWith('model.layers.2') || name === 'model.norm.weight'
    const model = await tinyModel({ threads }, config)
    const optimizer = model.createOptimizer({ trainable })
    model.resetMemoryPeak()
    await optimizer.trainStep({ ids, labels: ids }, { recompute })
    const { peak, moments } = await model.memory()
    const expected = estimate({ trainable, recompute })
    expectWithin5Percent(peak, expected.total)
    expect(moments).toBe(expected.moments)
    // The inputs of two layers; with 'none' everything inside them too.
    const saved = estimate({ recompute }).activations - expected.activations
    expect(saved / (2 * 320 * 256 * 4)).toBeGreaterThanOrEqual(recompute === 'all' ? 1 : 12)
    expect(estimate({ trainable, trainStep: false }).gradients).toBeLessThan(
      estimate({ trainStep: false }).gradients / 3,
    )
    await optimizer.dispose()
    await model.dispose()
  })

  test.each(['fp32', 'bf16', 'nvfp4'] as const)(
    'counts kept %s gradients to the byte, and is within 5 %% of the peak of steps with them',
    async (gradients) => {
      await using model = await tinyModel({ threads }, config)
      await using optimizer = model.createOptimizer()
      await expectKeptGradients(model, optimizer, ids, gradients, estimate({ trainStep: false, gradients }))
    },
  )

  test.each(['nvfp4', 'fp32', 'bf16'] as const)(
    'is within 5 %% of the peak of a forward pass on %s weights',
    async (weights) => {
      const model = await tinyModel({ threads, weights }, config)
      model.resetMemoryPeak()
      await (await model.forward(ids)).dispose()
      const expected = estimate({ mode: 'inference', weights, cacheTokens: 0 })
      const { peak, model: own } = await model.memory()
      expectWithin5Percent(peak, expected.total)
      expect([own.weights, own.scales]).toEqual([expected.weights, expected.scales])
      await model.dispose()
    },
  )

  test.each(['fp32', 'bf16'] as const)('counts a %s cache to the byte', async (dtype) => {
    const model = await tinyModel({ threads }, config)
    const cache = model.createKvCache({ maxTokens: 200, dtype })
    await model.forwardWithKvCache(ids[0]!, cache)
    expect(await cache.bytes()).toBe(estimate({ mode: 'inference', cacheTokens: 160, cacheDtype: dtype }).cache)
    await model.dispose()
  })

  test('knows Qwen3-4B: all of it trains in NVFP4 in about 8 GiB', () => {
    const { weights, scales, moments } = Qwen3Nvfp4Model.estimateMemory(qwen3Of4b, { mode: 'training', tokens: 512 })
    expect((weights + scales) / 2 ** 30).toBeCloseTo(2.11, 1)
    expect((weights + scales + moments) / 2 ** 30).toBeLessThan(8)
  })

  test('counts what a GPU holds: bf16 activations and caches, bf16 gradient rows, scratch of products, none of threads', () => {
    const [cpu, gpu] = (['cpu', 'cuda:1'] as const).map((device) => estimate({ device, threads: 1, stepChunkRows: 64 }))
    // Norms, log-sum-exps and ids stay 32 bits wide.
    expect(gpu!.activations / cpu!.activations).toBeGreaterThan(0.5)
    expect(gpu!.activations / cpu!.activations).toBeLessThan(0.53)
    for (const kind of ['weights', 'scales', 'moments', 'gradients'] as const) expect(gpu![kind]).toBe(cpu![kind])
    // cuBLASLt's 32 MiB, and a weight decoded whole; nothing of a thread.
    const decoded = 4096 * 256 * 2
    expect(gpu!.scratch).toBeGreaterThan(2 ** 25 + decoded)
    expect(estimate({ device: 'cuda:0', threads: 64 })).toEqual(estimate({ device: 'cuda:0', threads: 1 }))
    // All rows of the embedding in f32, which 12288 are, instead of 64 of the widest other matrix in bf16.
    const rows = (stepChunkRows?: number) => estimate({ device: 'cuda:0', stepChunkRows }).scratch
    expect(rows() - rows(64)).toBe(4096 * 256 * 4 - 64 * 768 * 2)
    expect(rows()).toBe(rows(12_288))
    const cache = (device: string) => estimate({ mode: 'inference', device, cacheTokens: 160 }).cache
    expect(cache('cuda:0')).toBe(cache('cpu') / 2)
  })

  test('counts a second form of fp32 weights on a GPU, which its products take in bf16', () => {
    const scratch = (weights: 'fp32' | 'bf16') => estimate({ mode: 'inference', device: 'cuda:0', weights }).scratch
    expect(scratch('fp32') - scratch('bf16')).toBe(4096 * 256 * 2)
  })

  test('knows Qwen3-4B on a GPU: a step of 2048 tokens in 9 GiB, all its least in 8', () => {
    const step = (options: Partial<MemoryOptions> = {}) =>
      Qwen3Nvfp4Model.estimateMemory(qwen3Of4b, { mode: 'training', device: 'cuda:0', tokens: 2048, ...options }).total
    expect(step() / 2 ** 30).toBeLessThan(9)
    expect(step({ stepChunkRows: 1024 })).toBeLessThan(step())
    expect(step({ tokens: 8, stepChunkRows: 1024 }) / 2 ** 30).toBeLessThan(8)
  })

  test.each([
    [{ mode: 'serving' }, `Expected 'inference' | 'training' for mode but received "serving"`],
    [{ device: 'gpu' }, `Expected 'cpu' or 'cuda:N' for device but received "gpu"`],
    [{ tokens: 0 }, 'Expected an integer of at least 1 for tokens but received 0'],
    [{ trainable: 'all' }, 'Expected a function for trainable but received "all"'],
    [{ dtype: 'fp32' }, 'but received dtype'],
  ])('refuses %j', (options, message) => {
    expect(() => estimate(options as object)).toThrow(message)
  })
})
