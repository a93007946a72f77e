/** Loads a model and talks to it. Questions come from the command line, or else line by line from the terminal. */
import { createInterface } from 'node:readline'
import { ChatSession, Qwen3Nvfp4Model, Tokenizer } from 'qwen3-nvfp4'

const [modelPath, tokenizerPath, ...questions] = process.argv.slice(2)
if (!modelPath || !tokenizerPath) {
  console.error('usage: tsx examples/load-and-chat.ts <model.dat> <folder with tokenizer.json> [question]...')
  process.exit(2)
}

await using model = await Qwen3Nvfp4Model.load(modelPath)
const tokenizer = await Tokenizer.fromFile(tokenizerPath)
await using session = new ChatSession({ model, tokenizer, generation: { maxTokens: 256 } })

async function turn(question: string): Promise<void> {
  for await (const text of session.stream(question)) process.stdout.write(text)
  const { cachedTokens, prefilledTokens, generatedTokens } = session.lastTurn!
  console.log(`\n[${cachedTokens} tokens kept, ${prefilledTokens} read, ${generatedTokens} written]`)
}

if (questions.length > 0) {
  for (const question of questions) {
    console.log(`> ${question}`)
    await turn(question)
  }
} else {
  const lines = createInterface({ input: process.stdin, output: process.stdout, prompt: '> ' })
  lines.prompt()
  for await (const line of lines) {
    if (line.trim() !== '') await turn(line)
    lines.prompt()
  }
}
