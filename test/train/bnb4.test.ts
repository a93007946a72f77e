/** Weights in the 4-bit codes of bitsandbytes while everything around them trains: they stay, gradients pass through them. */
import { Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { bnb4Config, bnb4Quantization, bnb4Tensors, writeBnb4Directory, writeValues } from '../support/bnb4-files'
import { temporaryFolder } from '../support/files'
import { expectClose, expectSameBytes } from '../support/expect-close'

const way = { codebook: 'nf4' } as const
const q = 'model.layers.1.self_attn.q_proj.weight'
const ids = [
  [3, 1, 4, 1, 5, 9, 2, 6],
  [5, 3, 5, 8, 9, 7, 9, 3],
]

// A device that no other test file uses, even where they share one addon: what they left is not counted.
const threads = 6

let model: Qwen3Nvfp4Model
/** The same values, dense. */
let twin: Qwen3Nvfp4Model
beforeEach(async () => {
  const { tensors, values } = bnb4Tensors(way)
  const folder = await writeBnb4Directory(temporaryFolder(), tensors, bnb4Quantization(way))
  model = await Qwen3Nvfp4Model.load(folder, { threads })
  twin = await Qwen3Nvfp4Model.load(await writeValues(temporaryFolder(), values), { threads, weights: 'fp32' })
})
afterEach(async () => {
  for (const each of [model, twin]) await each?.dispose()
})

const othersTrain = (name: string) => !name.includes('_proj')

test('gradients of everything else are those of dense weights of the same values', async () => {
  const losses = [await model.loss(ids, ids), await twin.loss(ids, ids)]
  expectClose([losses[0]!.value], [losses[1]!.value], 1e-5)
  for (const loss of losses) await loss.backward()
  for (const parameter of model.parameters()) {
    const gradient = await parameter.grad()
    expect(gradient === null).toBe(parameter.storage === 'bnb4')
    if (!gradient) continue
    const expected = (await twin.parameter(parameter.name)!.grad())!
    expectClose(gradient, expected, 1e-5 * Math.max(...expected.map(Math.abs)) + 1e-7, 1e-3)
  }
})

test('everything else trains, by the steps that it takes beside dense weights', async () => {
  const before = await model.parameter(q)!.read()
  const steps = await Promise.all(
    [model, twin].map(async (each) => {
      await using optimizer = each.createOptimizer({ lr: 1e-2, moments: 'fp32', trainable: othersTrain })
      const losses = []
      for (let i = 0; i < 4; i++) losses.push((await optimizer.trainStep({ ids, labels: ids })).loss)
      return losses
    }),
  )
  expectClose(steps[0]!, steps[1]!, 2e-3)
  expect(steps[0]!.at(-1)!).toBeLessThan(steps[0]![0]! - 0.1)
  expectSameBytes(await model.parameter(q)!.read(), before)
})

test('to train one is refused by its name, and leaves the model as it was', async () => {
  const first = model.parameter('model.layers.0.self_attn.q_proj.weight')!
  const refused = {
    code: 'UNSUPPORTED',
    message: expect.stringContaining(`${first.name} is stored in bitsandbytes' NF4`),
  }
  await using optimizer = model.createOptimizer()
  await expect(optimizer.trainStep({ ids, labels: ids })).rejects.toMatchObject(refused)
  await expect(first.write(new Float32Array(first.count))).rejects.toMatchObject(refused)
  await (await model.loss(ids, ids)).backward()
  expect(await first.grad()).toBeNull()
})

test('estimateMemory counts their bytes, and state for everything else alone', async () => {
  await twin.dispose() // memory() counts the models of a device
  const { hiddenSize, vocabSize } = bnb4Config
  const estimate = Qwen3Nvfp4Model.estimateMemory(bnb4Config, { mode: 'training', tokens: 16, weights: 'bnb4' })
  await using optimizer = model.createOptimizer({ trainable: othersTrain })
  await optimizer.trainStep({ ids, labels: ids })
  const { weights, scales, moments } = await model.memory()
  expect(scales).toBe(estimate.scales)
  expect(moments).toBe(estimate.moments)
  // An embedding is estimated as bf16, and this one is fp32.
  expect(weights).toBe(estimate.weights + 2 * hiddenSize * vocabSize)
})
