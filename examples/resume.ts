/**
 * Training that may be stopped (Ctrl-C), killed or switched off at any moment: run the same command again and it goes on
 * from its last checkpoint, with the losses that it would have had.
 */
import { Qwen3Nvfp4Model, Tokenizer, Trainer, TrainingData } from 'qwen3-nvfp4'

const [modelPath, tokenizerPath, pairsPath, folder, steps = '200', stopAfter = 'Infinity'] = process.argv.slice(2)
if (!modelPath || !tokenizerPath || !pairsPath || !folder) {
  console.error(
    'usage: tsx examples/resume.ts <model.dat> <folder with tokenizer.json> <pairs.tsv> <folder of checkpoints> [steps] [stop after]',
  )
  process.exit(2)
}

await using model = await Qwen3Nvfp4Model.load(modelPath)
const tokenizer = await Tokenizer.fromFile(tokenizerPath)
const data = await TrainingData.fromTsv(pairsPath, { tokenizer })

await using trainer = new Trainer({
  ...{ model, data, tokenizer, maxTokens: 256, steps: Number(steps) },
  checkpointDir: folder,
  checkpointEvery: 10,
  resume: true,
  handleSigint: true,
})
trainer.on('step', ({ step, loss }) => {
  console.log(`step ${step}: loss ${loss}`)
  if (step === Number(stopAfter)) trainer.stop()
})
trainer.on('checkpoint', ({ path, seconds }) => console.error(`wrote ${path} in ${seconds.toFixed(2)} s`))

const { reason, checkpoint } = await trainer.run()
console.log(reason === 'steps' ? `done: ${checkpoint}/model.dat` : 'stopped; run the same command to go on')
