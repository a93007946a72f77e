/** `bench`: how fast this model decodes, reads prompts and trains on this device. */
import { Command } from 'commander'
import type { Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { interruptible } from './exit'
import { addModelFlags, type ModelFlags, openModel } from './model-flags'
import { json, line, note, size, table } from './output'
import { flag, integer, list, oneOf } from './values'

type Part = 'decode' | 'prefill' | 'train'

interface Flags extends ModelFlags {
  only?: Part[]
  promptTokens: number
  newTokens: number
  trainTokens: number
  batchSize: number
  runs: number
  json?: boolean
}

export interface Measurement {
  what: Part
  /** Tokens of one run. */
  tokens: number
  /** Of the runs, after warming up. */
  medianSeconds: number
  minSeconds: number
  maxSeconds: number
  /** Of the median. */
  tokensPerSecond: number
  /** The most that the library held on the device meanwhile. */
  peakBytes: number
}

const parts = ['decode', 'prefill', 'train'] as const

export function benchCommand(): Command {
  const command = new Command('bench')
    .summary('measure decoding, reading prompts and training')
    .description(
      'measure decoding (the time of --new-tokens less that of 4, so without the prompt), reading a prompt, and fused ' +
        'training steps with every state in NVFP4: medians of --runs after warming up',
    )
  addModelFlags(command, { tokenizer: false })
  return command
    .optionsGroup('Measurement:')
    .addOption(flag('--only <list>', 'some of decode, prefill, train (default: all)', list(oneOf(...parts))))
    .addOption(flag('--prompt-tokens <n>', 'prompt of decode and prefill, 1 or more', integer(1)).default(512))
    .addOption(flag('--new-tokens <n>', 'tokens to decode, 5 or more', integer(5)).default(68))
    .addOption(flag('--train-tokens <n>', 'tokens of a row of a training step, 2 or more', integer(2)).default(512))
    .addOption(flag('--batch-size <n>', 'rows of a training step, 1 or more', integer(1)).default(1))
    .addOption(flag('--runs <n>', 'runs of each, 1 or more', integer(1)).default(5))
    .optionsGroup('Output:')
    .addOption(flag('--json', 'one JSON object'))
    .action((flags: Flags) => interruptible((signal) => run(flags, signal)))
}

async function run(flags: Flags, signal: AbortSignal): Promise<void> {
  await using model = await openModel(flags, signal)
  const results: Measurement[] = []
  for (const part of flags.only ?? parts) {
    note(`measuring ${part}`)
    model.resetMemoryPeak()
    const { tokens, times } = await measure[part](model, flags, signal)
    const { peak } = await model.memory()
    const medianSeconds = median(times)
    const [minSeconds, maxSeconds] = [Math.min(...times), Math.max(...times)]
    results.push({
      what: part,
      tokens,
      medianSeconds,
      minSeconds,
      maxSeconds,
      tokensPerSecond: tokens / medianSeconds,
      peakBytes: peak,
    })
  }
  const { device, threads, isa, parameterCount } = model
  if (flags.json) return json({ device, threads, isa, parameters: parameterCount, results })
  line(`${(parameterCount / 1e6).toFixed(1)} M parameters on ${device}, ${threads} CPU threads (${isa})\n`)
  const ms = (value: number) => `${(1000 * value).toFixed(2)} ms`
  line(
    table([
      ['what', 'tokens', 'tokens/s', 'median', 'least', 'most', 'peak memory'],
      ...results.map(({ what, tokens, tokensPerSecond, medianSeconds, minSeconds, maxSeconds, peakBytes }) => [
        ...[what, String(tokens), tokensPerSecond.toFixed(1), ms(medianSeconds), ms(minSeconds), ms(maxSeconds)],
        size(peakBytes),
      ]),
    ]),
  )
}

type Measure = (
  model: Qwen3Nvfp4Model,
  flags: Flags,
  signal: AbortSignal,
) => Promise<{ tokens: number; times: number[] }>

const measure: Record<Part, Measure> = {
  async decode(model, { promptTokens, newTokens, runs }, signal) {
    const prompt = idsOf(promptTokens, model)
    const generate = async (maxTokens: number) => {
      for await (const _ of model.generate(prompt, { maxTokens, stopTokens: [], maxRepeats: 0, signal }));
    }
    const short = median(await timesOf(runs, () => generate(shortRun)))
    const long = await timesOf(runs, () => generate(newTokens))
    return { tokens: newTokens - shortRun, times: long.map((time) => time - short) }
  },

  async prefill(model, { promptTokens, runs }, signal) {
    const prompt = idsOf(promptTokens, model)
    const read = async () => (await model.forward(prompt, { logits: 'last', signal })).dispose()
    return { tokens: promptTokens, times: await timesOf(runs, read) }
  },

  async train(model, { trainTokens, batchSize, runs }, signal) {
    const rows = Array.from({ length: batchSize }, (_, row) => [...idsOf(trainTokens, model, row)])
    await using optimizer = model.createOptimizer({ lr: 1e-5 })
    const step = () => optimizer.trainStep({ ids: rows, labels: rows }, { signal })
    return { tokens: trainTokens * batchSize, times: await timesOf(runs, step) }
  },
}

/** New tokens of the generation that is taken off the long one. */
const shortRun = 4

/** Distinct ids, the same in every run. */
const idsOf = (count: number, { config }: Qwen3Nvfp4Model, row = 0): Int32Array =>
  Int32Array.from({ length: count }, (_, i) => ((row * count + i + 1) * 7919) % config.vocabSize)

/** Seconds of each run, after two that warm up. */
async function timesOf(runs: number, work: () => Promise<unknown>): Promise<number[]> {
  const times: number[] = []
  for (let i = -2; i < runs; i++) {
    const begin = performance.now()
    await work()
    if (i >= 0) times.push((performance.now() - begin) / 1000)
  }
  return times
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length / 2
  return sorted.length % 2 === 1 ? sorted[Math.floor(middle)]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}
