/** `generate`: one prompt, one answer, streamed. */
import { Command } from 'commander'
import { type GeneratedText, generateText, MemoryReport, type Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { interruptible } from './exit'
import { addModelFlags, type ModelFlags, openModel } from './model-flags'
import { json, line, seconds, warn, write } from './output'
import { addPromptFlags, type Prompt, type PromptFlags, readPrompt } from './prompt-flags'
import { addSamplingFlags, type SamplingFlags, samplingOptions, withTimeout } from './sampling-flags'
import { flag, integer, text } from './values'

interface Flags extends ModelFlags, PromptFlags, SamplingFlags {
  topLogprobs?: number
  timing?: boolean
  memoryReport?: string
  json?: boolean
}

export function generateCommand(): Command {
  const command = new Command('generate')
    .summary('continue a prompt')
    .description('continue a prompt; the text goes to stdout as it is made')
  addModelFlags(command, { tokenizer: true })
  addPromptFlags(command)
  addSamplingFlags(command, { maxTokens: 256 })
  return command
    .optionsGroup('Output:')
    .addOption(flag('--timing', 'seconds and tokens a second, on stderr'))
    .addOption(flag('--top-logprobs <n>', 'with --json, the n likeliest tokens at each place (default: 0)', integer(0)))
    .addOption(flag('--memory-report <path>', 'write what memory held, as JSON (default: none)', text))
    .addOption(flag('--json', 'one JSON object at the end in place of text'))
    .action((flags: Flags) => interruptible((signal) => run(flags, signal)))
}

async function run(flags: Flags, signal: AbortSignal): Promise<void> {
  const prompt = await readPrompt(flags)
  await using model = await openModel(flags, signal)
  const report = new MemoryReport(model)
  await report.record('model_loaded')
  await answer(model, prompt, flags, signal)
  await report.record('generation_done')
  if (flags.memoryReport !== undefined) await report.save(flags.memoryReport)
}

async function answer(model: Qwen3Nvfp4Model, prompt: Prompt, flags: Flags, signal: AbortSignal): Promise<void> {
  const begin = performance.now()
  const pieces: GeneratedText[] = []
  let firstAt = NaN
  let finishReason = 'timeout'
  try {
    for await (const piece of start(model, prompt, flags, withTimeout(signal, flags))) {
      if (pieces.length === 0) firstAt = performance.now()
      pieces.push(piece)
      finishReason = piece.finishReason ?? finishReason
      if (!flags.json) write(prompt.tokenizer ? piece.text : `${pieces.length > 1 ? ',' : ''}${piece.id}`)
    }
  } catch (error) {
    const timedOut = !signal.aborted && (error as Error).name === 'TimeoutError'
    if (!timedOut) throw error
  } finally {
    if (!flags.json && pieces.length > 0) line('')
  }
  const end = performance.now()
  const tokensPerSecond = (1000 * pieces.length) / (end - begin)
  const times = { firstTokenSeconds: seconds(firstAt - begin), totalSeconds: seconds(end - begin), tokensPerSecond }
  if (flags.timing) {
    const counts = `${prompt.ids.length} tokens read, ${pieces.length} written`
    warn(
      `[${counts}, first after ${times.firstTokenSeconds} s, ${times.totalSeconds} s in all, ${tokensPerSecond.toFixed(1)} tokens/s; ${finishReason}]`,
    )
  }
  if (!flags.json) return
  json({
    ...(prompt.tokenizer && { text: pieces.map((piece) => piece.text).join('') }),
    ids: pieces.map(({ id }) => id),
    finishReason,
    promptTokens: prompt.ids.length,
    generatedTokens: pieces.length,
    ...times,
    ...(flags.topLogprobs && { tokens: pieces.map(({ id, logprob, topLogprobs }) => ({ id, logprob, topLogprobs })) }),
  })
}

/** Ids alone when there is no tokenizer. */
async function* start(
  model: Qwen3Nvfp4Model,
  { ids, tokenizer }: Prompt,
  flags: Flags,
  signal: AbortSignal,
): AsyncGenerator<GeneratedText> {
  const { stopStrings, ...sampling } = samplingOptions(flags)
  const options = { ...sampling, signal, ...(flags.topLogprobs && { topLogprobs: flags.topLogprobs }) }
  if (tokenizer) yield* generateText(model, tokenizer, ids, { ...options, stopStrings })
  else for await (const token of model.generate(ids, options)) yield { ...token, text: '' }
}
