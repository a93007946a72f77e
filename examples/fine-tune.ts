/** A training loop of one's own: loss, backward, step. Teaches the answers of a file of `prompt<TAB>answer` lines. */
import { readFile } from 'node:fs/promises'
import { Qwen3Nvfp4Model, Tokenizer } from 'qwen3-nvfp4'

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

/** A conversation of one turn; only the answer, with the token that ends it, has labels (-100 has no loss). */
function sample(line: string): { ids: Int32Array; labels: Int32Array } {
  const [prompt = '', answer = ''] = line.split('\t')
  const question = { role: 'user', content: prompt } as const
  const begin = tokenizer.applyChatTemplate([question], { addGenerationPrompt: true }).length
  const ids = tokenizer.applyChatTemplate([question, { role: 'assistant', content: answer }])
  const end = ids.lastIndexOf(tokenizer.eosTokenId!)
  return { ids, labels: ids.map((id, i) => (i >= begin && i <= end ? id : -100)) }
}

const lines = (await readFile(pairsPath, 'utf8')).split('\n').filter((line) => line.includes('\t') && line[0] !== '#')
const samples = lines.map(sample)

for (let epoch = 1; epoch <= Number(epochs); epoch++) {
  let [sum, tokens] = [0, 0]
  for (const { ids, labels } of samples) {
    const loss = await model.loss(ids, labels)
    await loss.backward()
    await optimizer.step({ maxGradNorm: 1 })
    sum += loss.value * loss.tokens
    tokens += loss.tokens
  }
  console.log(`epoch ${epoch}: loss ${(sum / tokens).toFixed(4)} over ${tokens} tokens`)
}

const { bytes } = await model.saveDat(outPath)
console.log(`wrote ${outPath}, ${bytes} bytes`)
