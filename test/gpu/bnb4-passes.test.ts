/** Needs a CUDA device: `npm run test:gpu`. Models with 4-bit weights of bitsandbytes decode and train around them as on the CPU. */
import { Qwen3Nvfp4Model, type KvCache } from 'qwen3-nvfp4'
import { bnb4Quantization, denseValues, encodeModel, writeBnb4Directory, type Bnb4Way } from '../support/bnb4-files'
import { temporaryFolder } from '../support/files'
import {
  activationBounds,
  describeOnGpu,
  device,
  gpuConfig,
  gradientBounds,
  gradientsOf,
  leads,
  tokensOf,
  top,
} from '../support/gpu'
import { expectSimilar } from '../support/similarity'

const V = gpuConfig.vocabSize

/** All projections, and some of a layer beside dense ones: launches for several weights have to part. */
const cases: [string, Bnb4Way, (name: string) => boolean][] = [
  ['NF4', { codebook: 'nf4', nested: true }, (name) => name.includes('_proj')],
  ['fp4 beside dense weights', { codebook: 'fp4' }, (name) => /layers\.[02].*(q|v|gate|down)_proj/.test(name)],
]

/** Norms of one and smaller weights, as other tests on a GPU have them: their bounds are for such activations. */
function calmValues() {
  const entries = [...denseValues(gpuConfig)].map(([name, { shape, values }]) => {
    return [name, { shape, values: values.map((value) => (shape.length === 1 ? 1 : 0.75 * value)) }] as const
  })
  return new Map(entries)
}

async function logitsOf(model: Qwen3Nvfp4Model, ids: number[], cache?: KvCache): Promise<Float32Array> {
  const all = { logits: 'all' } as const
  await using result = await (cache ? model.forwardWithKvCache(ids, cache, all) : model.forward(ids, all))
  return result.logits.toFloat32Array()
}

describeOnGpu('bitsandbytes weights', () => {
  describe.each(cases)('%s', (_, way, encodes) => {
    let gpu: Qwen3Nvfp4Model
    let cpu: Qwen3Nvfp4Model
    beforeAll(async () => {
      const { tensors } = encodeModel(way, calmValues(), encodes)
      const folder = await writeBnb4Directory(temporaryFolder(), tensors, bnb4Quantization(way), gpuConfig)
      gpu = await Qwen3Nvfp4Model.load(folder, { device })
      cpu = await Qwen3Nvfp4Model.load(folder)
    })
    afterAll(async () => {
      for (const model of [gpu, cpu]) await model?.dispose()
    })

    test.each([1, 8, 9, 65])('give the logits of %i tokens, without a cache and with', async (T) => {
      const ids = tokensOf(T)
      const expected = await logitsOf(cpu, ids)
      expectSimilar('logits', await logitsOf(gpu, ids), expected, activationBounds)
      await using cache = gpu.createKvCache({ maxTokens: 80 })
      if (T > 1) {
        const first = await logitsOf(gpu, ids.slice(0, -1), cache)
        expectSimilar('cached logits', first, expected.subarray(0, first.length), activationBounds)
      }
      const last = await logitsOf(gpu, ids.slice(-1), cache)
      expectSimilar('the logits of the last', last, expected.subarray(-V), activationBounds)
    })

    test('generate what a pass over the same tokens chooses', async () => {
      const prompt = tokensOf(6)
      const run = async () => {
        const ids: number[] = []
        for await (const { id } of gpu.generate(prompt, { maxTokens: 24, temperature: 0, stopTokens: [] })) ids.push(id)
        return ids
      }
      const ids = await run()
      expect(ids).toHaveLength(24)
      expect(await run()).toEqual(ids)
      const logits = await logitsOf(cpu, [...prompt, ...ids])
      let compared = 0
      ids.forEach((id, i) => {
        const row = logits.subarray((prompt.length - 1 + i) * V, (prompt.length + i) * V)
        if (!leads(row, 0.2)) return
        expect(id).toBe(top(row))
        compared++
      })
      expect(compared).toBeGreaterThan(6)
    })

    test('pass gradients on and stay as they are while the rest trains', async () => {
      const ids = [tokensOf(37, 1), tokensOf(37, 2)]
      for (const model of [gpu, cpu]) await (await model.loss(ids, ids)).backward()
      const [actual, expected] = [await gradientsOf(gpu), await gradientsOf(cpu)]
      expect(Object.keys(actual)).toEqual(Object.keys(expected))
      expect(Object.keys(actual).some(encodes)).toBe(false)
      for (const [name, gradient] of Object.entries(expected)) {
        expectSimilar(name, actual[name]!, gradient, gradientBounds)
      }
      for (const model of [gpu, cpu]) await model.zeroGrad()
      await using optimizer = gpu.createOptimizer({ lr: 1e-3, trainable: (name) => name.includes('norm') })
      const losses: number[] = []
      for (let i = 0; i < 5; i++) losses.push((await optimizer.trainStep({ ids, labels: ids })).loss)
      expect(losses.at(-1)!).toBeLessThan(losses[0]!)
    })
  })
})
