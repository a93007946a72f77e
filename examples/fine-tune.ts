/** A training loop of one's own: loss, backward, step. Teaches the answers of a file of `prompt<TAB>answer` lines. */
import { Qwen3Nvfp4Model, Tokenizer, TrainingData } from 'qwen3-nvfp4'

const [modelPath, tokenizerPath, pairsPath, outPath, epochs = '3', lr = '5e-5'] = process.argv.slice(2)
if (!modelPath || !tokenizerPath || !pairsPath || !outPath) {
  console.error(
    'usage: tsx examples/fine-tune.ts <model.dat> <folder with tokenizer.json> <pairs.tsv> <out.dat> [epochs] [lr]',
  )
  process.exit(2)
}

await using model = await Qwen3Nvfp4Model.load(modelPath)
const tokenizer = await Tokenizer.fromFile(tokenizerPath)
await using optimizer = model.createOptimizer({ lr: Number(lr), moments: 'nvfp4', stepChunkRows: 1024 })

// Only answers, with the token that ends them, have labels.
const data = await TrainingData.fromTsv(pairsPath, { tokenizer })

for (let epoch = 1; epoch <= Number(epochs); epoch++) {
  let [sum, counted] = [0, 0]
  for await (const { batch, tokens } of data.batches({ maxTokens: 1024, seed: epoch })) {
    const loss = await model.loss(batch.ids, batch.labels)
    await loss.backward()
    await optimizer.step({ maxGradNorm: 1 })
    sum += loss.value * tokens
    counted += tokens
  }
  console.log(`epoch ${epoch}: loss ${(sum / counted).toFixed(4)} over ${counted} tokens`)
}

const { bytes } = await model.saveDat(outPath)
console.log(`wrote ${outPath}, ${bytes} bytes`)
