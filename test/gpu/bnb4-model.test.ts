/**
 * Needs a CUDA device: `npm run test:gpu`. Checkpoints of bitsandbytes in GPU memory: the same bytes and values as on the
 * CPU, and the same logits within the rounding of bf16.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Qwen3Nvfp4Model, type LoadOptions } from 'qwen3-nvfp4'
import {
  bnb4Quantization,
  denseValues,
  encodeModel,
  writeBnb4Dat,
  writeBnb4Directory,
  type Bnb4Way,
} from '../support/bnb4-files'
import { expectSameBytes } from '../support/expect-close'
import { temporaryFolder } from '../support/files'
import { activationBounds, describeOnGpu, device, gpuConfig, tokensOf, weightsOf } from '../support/gpu'
import { expectSimilar } from '../support/similarity'

const ways: [string, Bnb4Way][] = [
  ['nf4, twice quantised', { codebook: 'nf4', nested: true }],
  ['fp4 in blocks of 256', { codebook: 'fp4', blockSize: 256 }],
]

describeOnGpu('checkpoints of bitsandbytes', () => {
  // Weights near 0.06 keep activations and logits near 1.
  const dense = denseValues(gpuConfig)

  describe.each(ways)('%s', (_, way) => {
    const made = encodeModel(way, dense)
    let folder: string
    let models: [Qwen3Nvfp4Model, Qwen3Nvfp4Model]

    const loadBoth = (path: string, options: LoadOptions = {}) =>
      Promise.all([
        Qwen3Nvfp4Model.load(path, { ...options, device: 'cpu' }),
        Qwen3Nvfp4Model.load(path, { ...options, device }),
      ])

    beforeAll(async () => {
      folder = await writeBnb4Directory(temporaryFolder(), made.tensors, bnb4Quantization(way), gpuConfig)
      models = await loadBoth(folder)
    })
    afterAll(async () => {
      for (const model of models) await model.dispose()
    })

    test('have the values of the file, and run as they are', async () => {
      const weights = await weightsOf(models[1])
      for (const [name, { values }] of made.values) expectSameBytes(weights[name]!, values)
      const storages = new Set([...models[1].parameters()].map(({ storage }) => storage))
      expect([...storages].sort()).toEqual(['bnb4', 'fp32'])
    })

    test.each([1, 8, 65])('give the logits of the CPU for %i tokens', async (count) => {
      const [a, b] = await Promise.all(
        models.map(async (model) => (await model.forward(tokensOf(count), { logits: 'all' })).logits!.toFloat32Array()),
      )
      expectSimilar('logits', b!, a!, activationBounds)
    })

    test('generate the same tokens twice, of which the first is that of the CPU', async () => {
      const collect = async (model: Qwen3Nvfp4Model) => {
        const ids: number[] = []
        for await (const { id } of model.generate(tokensOf(20), { maxTokens: 24, maxRepeats: 0 })) ids.push(id)
        return ids
      }
      const ids = await collect(models[1])
      expect(ids).toHaveLength(24)
      expect(await collect(models[1])).toEqual(ids)
      expect(ids[0]).toBe((await collect(models[0]))[0])
    })

    test('are saved as on the CPU, byte for byte, and restored', async () => {
      const dat = await writeBnb4Dat(join(temporaryFolder(), 'model.dat'), made.tensors, gpuConfig)
      await using model = await Qwen3Nvfp4Model.load(dat, { device })
      const saved = join(temporaryFolder(), 'saved.dat')
      await model.saveDat(saved)
      expectSameBytes(readFileSync(saved), readFileSync(dat))
      await model.restoreDat(saved)
      expectSameBytes(await weightsOf(model), await weightsOf(models[0]))
    })

    test.each(['nvfp4', 'bf16'] as const)('become the same %s on both', async (weights) => {
      const [a, b] = await loadBoth(folder, { weights })
      expectSameBytes(await weightsOf(b), await weightsOf(a))
      await a.dispose()
      await b.dispose()
    })
  })
})
