/** Fine-tunes on a file of `prompt<TAB>answer` lines, in one call: packed, scheduled, with a progress bar. */
import { Qwen3Nvfp4Model, Tokenizer, Trainer, TrainingData } from 'qwen3-nvfp4'

const [modelPath, tokenizerPath, pairsPath, outPath, epochs = '3', lr = '5e-5'] = process.argv.slice(2)
if (!modelPath || !tokenizerPath || !pairsPath || !outPath) {
  console.error(
    'usage: tsx examples/train-on-tsv.ts <model.dat> <folder with tokenizer.json> <pairs.tsv> <out.dat> [epochs] [lr]',
  )
  process.exit(2)
}

await using model = await Qwen3Nvfp4Model.load(modelPath)
const tokenizer = await Tokenizer.fromFile(tokenizerPath)
const data = await TrainingData.fromTsv(pairsPath, { tokenizer })

await using trainer = new Trainer({
  ...{ model, data, tokenizer, epochs: Number(epochs), lr: Number(lr) },
  batchSize: 4,
  maxTokens: 256,
  pack: true,
  warmupSteps: 2,
  optimizer: { weights: 'nvfp4+residual' },
  progress: process.stderr.isTTY,
})
trainer.on('warning', ({ message }) => console.error(message))
const { steps, loss, tokens, seconds } = await trainer.run()
console.log(`${steps} steps, loss ${loss.toFixed(4)}, ${(tokens / seconds).toFixed(0)} answer tokens/s`)

const { bytes } = await model.saveDat(outPath, { residual: 'fold' })
console.log(`wrote ${outPath}, ${bytes} bytes`)
