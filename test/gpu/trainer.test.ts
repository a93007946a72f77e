/** Needs a CUDA device: `npm run test:gpu`. Runs that stop, or are killed, go on with the losses of one that never stopped. */
import { join } from 'node:path'
import { Qwen3Nvfp4Model, Trainer, TrainingData, type TrainerOptions } from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import { describeOnGpu, device, gpuConfig, tokensOf } from '../support/gpu'
import { killInChild, lastCheckpoint, trainInChild } from '../support/killed-runs'
import { uniformSource } from '../support/random'

const samples = Array.from({ length: 9 }, (_, i) => ({ ids: tokensOf(20 + 7 * i, i), labels: tokensOf(20 + 7 * i, i) }))
const basics = { maxTokens: 128, batchSize: 2, pack: true, lr: 2e-3, warmupSteps: 2 }

/** Losses and norms of steps up to `stopAfter`, from the last checkpoint of the folder on. */
async function run(folder: string, options: Partial<TrainerOptions>, stopAfter = Infinity): Promise<number[][]> {
  await using model = await Qwen3Nvfp4Model.initialize(gpuConfig, { device, seed: 4, stddev: 0.05 })
  const data = await TrainingData.fromSamples(samples)
  const files = { checkpointDir: folder, resume: true, steps: 8 }
  await using trainer = new Trainer({ model, data, ...basics, ...files, ...options })
  const taken: number[][] = []
  trainer.on('step', ({ step, loss, gradNorm }) => {
    taken.push([step, loss, gradNorm])
    if (step === stopAfter) trainer.stop()
  })
  await trainer.run()
  return taken
}

describeOnGpu('a resumed run equals one that never stopped', () => {
  const modes: [string, Partial<TrainerOptions>][] = [
    ['everything in NVFP4', { weightDecay: 0.1 }],
    ['a residual', { optimizer: { weights: 'nvfp4+residual' } }],
    [
      'a residual that the forward pass does not see',
      { optimizer: { weights: 'nvfp4+residual', residualInForward: false } },
    ],
    ['fp32 masters and int8 moments', { optimizer: { weights: 'fp32', moments: 'int8' } }],
    ['bf16 masters and moments', { optimizer: { weights: 'bf16', moments: 'bf16' } }],
    ['accumulation in NVFP4', { accumulate: 2, optimizer: { gradients: 'nvfp4' } }],
  ]

  test.each(modes)('with %s', async (_, options) => {
    const [whole, parts] = [temporaryFolder(), temporaryFolder()]
    const expected = await run(whole, options)
    const first = await run(parts, options, 3)
    expect([...first, ...(await run(parts, options))]).toEqual(expected)
    expect(await lastCheckpoint(parts)).toEqual(await lastCheckpoint(whole))
  })

  test('also after kills at random moments', async () => {
    const [whole, folder, steps] = [temporaryFolder(), temporaryFolder(), 20]
    trainInChild({ config: gpuConfig, folder: whole, steps, device })
    const random = uniformSource(Date.now())
    for (let i = 0; i < 4; i++) await killInChild({ config: gpuConfig, folder, steps, device }, 150 * random())
    trainInChild({ config: gpuConfig, folder, steps, device })
    expect(await lastCheckpoint(folder)).toEqual(await lastCheckpoint(whole))
  })

  test('and its checkpoint loads as a model', async () => {
    const folder = temporaryFolder()
    await run(folder, { optimizer: { weights: 'nvfp4+residual' } }, 2)
    await using model = await Qwen3Nvfp4Model.load(join(folder, 'step-00000002', 'model.dat'), { device })
    expect((await model.forward(samples[0]!.ids)).logits.shape).toEqual([1, gpuConfig.vocabSize])
  })
})
