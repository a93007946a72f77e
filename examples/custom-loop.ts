/** A training loop of one's own over the pieces that Trainer is made of. */
import { learningRate, planSchedule, Qwen3Nvfp4Model, Tokenizer, TrainingData } from 'qwen3-nvfp4'

const [modelPath, tokenizerPath, textPath, outPath, steps = '100'] = process.argv.slice(2)
if (!modelPath || !tokenizerPath || !textPath || !outPath) {
  console.error(
    'usage: tsx examples/custom-loop.ts <model.dat> <folder with tokenizer.json> <text.txt> <out.dat> [steps]',
  )
  process.exit(2)
}
await using model = await Qwen3Nvfp4Model.load(modelPath)
const data = await TrainingData.fromText(textPath, { tokenizer: await Tokenizer.fromFile(tokenizerPath) })
await using optimizer = model.createOptimizer({ weights: 'nvfp4+residual', decayNorms: false, weightDecay: 0.1 })
const schedule = planSchedule({ lr: 3e-3, schedule: 'wsd', warmupSteps: 5 }, Number(steps))
let step = 0
for await (const { batch } of data.batches({ batchSize: 4, maxTokens: 64, epochs: Infinity })) {
  if (step++ === schedule.steps) break
  const { loss, gradNorm } = await optimizer.trainStep(batch, { lr: learningRate(schedule, step), maxGradNorm: 1 })
  console.log(`step ${step}: loss ${loss.toFixed(4)}, gradient ${gradNorm.toFixed(3)}`)
}
await model.saveDat(outPath)
