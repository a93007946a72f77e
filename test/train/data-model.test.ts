import { TrainingData, type Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { collect } from '../support/training-data'
import { idsOf, tinyConfig, tinyModel } from '../support/tiny-model'

let model: Qwen3Nvfp4Model
let data: TrainingData

beforeAll(async () => {
  model = await tinyModel()
  const samples = [5, 9, 2, 7, 3, 8, 4].map((length, i) => {
    const ids = idsOf(length, 10 * i)
    return { ids, labels: ids.map((id, t) => (t > length / 3 ? id : -100)) }
  })
  data = await TrainingData.fromSamples(samples)
})

afterAll(() => model.dispose())

const settings = { vocabSize: tinyConfig.vocabSize, shuffle: false }

/** The mean loss over all counted labels of an epoch. */
async function epochLoss(options: { batchSize: number; maxTokens: number; pack?: boolean }): Promise<number> {
  let [sum, counted] = [0, 0]
  for (const { batch, tokens } of await collect(data, { ...settings, ...options })) {
    await using loss = await model.loss(batch.ids, batch.labels, { segments: batch.segments })
    expect(loss.tokens).toBe(tokens)
    sum += loss.value * tokens
    counted += tokens
  }
  return sum / counted
}

test('padded and packed batches have the loss of their samples alone', async () => {
  const alone = await epochLoss({ batchSize: 1, maxTokens: 9 })
  expect(await epochLoss({ batchSize: 3, maxTokens: 9 })).toBeCloseTo(alone, 5)
  expect(await epochLoss({ batchSize: 2, maxTokens: 16, pack: true })).toBeCloseTo(alone, 5)
  expect(await epochLoss({ batchSize: 1, maxTokens: 64, pack: true })).toBeCloseTo(alone, 5)
})

test('a batch is what trainStep takes', async () => {
  await using optimizer = model.createOptimizer({ lr: 0 })
  for (const { batch, tokens } of await collect(data, { ...settings, batchSize: 2, maxTokens: 16, pack: true })) {
    expect((await optimizer.trainStep(batch)).tokens).toBe(tokens)
  }
})
