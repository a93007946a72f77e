import { type MemoryOptions, Qwen3Nvfp4Model } from 'qwen3-nvfp4'
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
  ] as const)('is within a tenth of the peak of a fused training step, %j', async (modes) => {
    const model = await tinyModel({ threads }, config)
    const optimizer = model.createOptimizer({ moments: modes.moments, weights: modes.optimizerWeights })
    model.resetMemoryPeak()
    await optimizer.trainStep({ ids, labels: ids }, { recompute: modes.recompute })
    const { peak, moments, weights, scales } = await model.memory()
    const expected = estimate(modes)
    expect(Math.abs(peak / expected.total - 1)).toBeLessThan(0.1)
    expect(moments + weights + scales).toBe(expected.moments + expected.weights + expected.scales)
    await optimizer.dispose()
    await model.dispose()
  })

  test.each(['fp32', 'bf16', 'nvfp4'] as const)('counts kept %s gradients to the byte', async (gradients) => {
    const model = await tinyModel({ threads }, config)
    await (await model.loss(ids, ids)).backward({ gradients })
    expect((await model.memory()).model.gradients).toBe(estimate({ trainStep: false, gradients }).gradients)
    await model.dispose()
  })

  test.each(['nvfp4', 'fp32', 'bf16'] as const)(
    'is within a tenth of the peak of a forward pass on %s weights',
    async (weights) => {
      const model = await tinyModel({ threads, weights }, config)
      model.resetMemoryPeak()
      await (await model.forward(ids)).dispose()
      const expected = estimate({ mode: 'inference', weights, cacheTokens: 0 })
      const { peak, model: own } = await model.memory()
      expect(Math.abs(peak / expected.total - 1)).toBeLessThan(0.1)
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
    const qwen3 = {
      hiddenSize: 2560,
      numHiddenLayers: 36,
      numAttentionHeads: 32,
      numKeyValueHeads: 8,
      headDim: 128,
      intermediateSize: 9728,
      vocabSize: 151936,
      ropeTheta: 5e6,
      rmsNormEps: 1e-6,
      tieWordEmbeddings: true,
    }
    const { weights, scales, moments } = Qwen3Nvfp4Model.estimateMemory(qwen3, { mode: 'training', tokens: 512 })
    expect((weights + scales) / 2 ** 30).toBeCloseTo(2.11, 1)
    expect((weights + scales + moments) / 2 ** 30).toBeLessThan(8)
  })

  test.each([
    [{ mode: 'serving' }, `Expected 'inference' | 'training' for mode but received "serving"`],
    [{ tokens: 0 }, 'Expected an integer of at least 1 for tokens but received 0'],
    [{ dtype: 'fp32' }, 'but received dtype'],
  ])('refuses %j', (options, message) => {
    expect(() => estimate(options as object)).toThrow(message)
  })
})
