/**
 * Preparation of training data: how fast, and how long the event loop waits for it.
 *
 *   npx tsx benchmarks/train/data.ts <folder with tokenizer.json> [samples] [workers]
 *
 * Batches are taken as fast as they come. `open` reads, hashes and checks the file; the first epoch tokenises, the second
 * reads the cache. `waits` are the delays of a timer of 1 ms in all of it: 99.9 % of them, and the longest.
 */
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { Tokenizer, TrainingData, type BatchOptions } from 'qwen3-nvfp4'

const [tokenizerPath, samples = '20000', threads = '0'] = process.argv.slice(2)
if (!tokenizerPath) {
  console.error('usage: tsx benchmarks/train/data.ts <folder with tokenizer.json> [samples] [workers]')
  process.exit(2)
}
const tokenizer = await Tokenizer.fromFile(tokenizerPath)
const count = Number(samples)
const workers = Number(threads)

// Words of several scripts in an order that repeats nothing, so that no cache of the tokenizer answers for whole lines.
const words = [
  ...'the of training model weight 飛碟 你是誰 目擊 parameter naïve Привет 42 1999 rounding, scale; identity。'.split(
    ' ',
  ),
]
let counter = 0
const word = () => words[Math.imul((counter += 0x9e3779b9), 0x85ebca6b) >>> 28] ?? `w${counter}`
const sentence = (length: number) => Array.from({ length }, word).join(' ')

const folder = await mkdtemp(join(tmpdir(), 'qn-data-'))
async function write(name: string, lines: number, line: () => string): Promise<string> {
  const file = join(folder, name)
  await writeFile(file, Array.from({ length: lines }, line).join('\n'))
  return file
}

async function measure(name: string, file: string, open: () => Promise<TrainingData>, options: BatchOptions) {
  const delay = monitorEventLoopDelay({ resolution: 1 })
  delay.enable()
  const begin = performance.now()
  const data = await open()
  const openSeconds = (performance.now() - begin) / 1000
  const epochs: string[] = []
  for (let epoch = 0; epoch < 2; epoch++) {
    const start = performance.now()
    let [taken, tokens] = [0, 0]
    for await (const { batch, samples } of data.batches({ ...options, seed: epoch })) {
      taken += samples
      tokens += batch.ids.length * batch.ids[0]!.length
    }
    const seconds = (performance.now() - start) / 1000
    epochs.push(`${(taken / seconds).toFixed(0)} | ${(tokens / seconds / 1000).toFixed(0)} k`)
  }
  delay.disable()
  const { size } = await stat(file)
  const waits = `${(delay.percentile(99.9) / 1e6).toFixed(1)} | ${(delay.max / 1e6).toFixed(1)}`
  console.log(`| ${name} | ${(size / openSeconds / 1e6).toFixed(0)} | ${epochs.join(' | ')} | ${waits} |`)
}

console.log('| set | open, MB/s | samples/s | tokens/s | again: samples/s | tokens/s | waits, ms: 99.9 % | longest |')
console.log('| --- | --- | --- | --- | --- | --- | --- | --- |')
try {
  const pairs = await write('pairs.tsv', count, () => `${sentence(12)}\t${sentence(8)}`)
  const packed = { maxTokens: 2048, batchSize: 4, pack: true }
  await measure('TSV, packed', pairs, () => TrainingData.fromTsv(pairs, { tokenizer, workers }), packed)
  await measure('TSV, single', pairs, () => TrainingData.fromTsv(pairs, { tokenizer, workers }), { maxTokens: 2048 })
  const turn = () => [
    { role: 'user', content: sentence(40) },
    { role: 'assistant', content: sentence(80) },
  ]
  const chats = await write('chat.jsonl', Math.ceil(count / 20), () =>
    JSON.stringify({ messages: Array.from({ length: 5 }, turn).flat() }),
  )
  await measure('chat of 5 turns, packed', chats, () => TrainingData.fromChatJsonl(chats, { tokenizer, workers }), {
    ...packed,
    maxTokens: 8192,
  })
  const text = await write('text.txt', count, () => sentence(30))
  await measure('text', text, () => TrainingData.fromText(text, { tokenizer }), { maxTokens: 2048, batchSize: 4 })
} finally {
  await rm(folder, { recursive: true })
}
