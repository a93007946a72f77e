/** Continues a text token by token, each with its probability. Ctrl-C stops the model, not the program. */
import { Qwen3Nvfp4Model, Tokenizer, generateText } from 'qwen3-nvfp4'

const [modelPath, tokenizerPath, prompt, maxTokens = '40', temperature = '0'] = process.argv.slice(2)
if (!modelPath || !tokenizerPath || !prompt) {
  console.error(
    'usage: tsx examples/stream-tokens.ts <model.dat> <folder with tokenizer.json> <prompt> [tokens] [temperature]',
  )
  process.exit(2)
}

await using model = await Qwen3Nvfp4Model.load(modelPath)
const tokenizer = await Tokenizer.fromFile(tokenizerPath)

const stop = new AbortController()
process.once('SIGINT', () => stop.abort())
const options = {
  maxTokens: Number(maxTokens),
  temperature: Number(temperature),
  topP: 0.95,
  topLogprobs: 3,
  signal: stop.signal,
}

const show = (text: string) => JSON.stringify(text).slice(1, -1)
let whole = prompt
try {
  for await (const { id, text, logprob, topLogprobs = [], finishReason } of generateText(
    model,
    tokenizer,
    prompt,
    options,
  )) {
    // A token may end inside a character: its text then comes with a later one.
    whole += text
    const others = topLogprobs.map((other) => `${show(tokenizer.decode([other.id]))} ${percent(other.logprob)}`)
    console.log(
      `${String(id).padStart(6)}  ${percent(logprob).padStart(6)}  ${show(text).padEnd(16)} ${others.join('  ')}`,
    )
    if (finishReason) console.log(`ended by ${finishReason}`)
  }
} catch (error) {
  if (!stop.signal.aborted) throw error
  console.log('stopped')
}
console.log(whole)

function percent(logprob: number): string {
  return `${(100 * Math.exp(logprob)).toFixed(1)}%`
}
