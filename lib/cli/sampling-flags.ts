/** The flags that say how new tokens are chosen and when they end. */
import type { Command } from 'commander'
import type { TextOptions } from 'qwen3-nvfp4'
import { flag, integer, number, pick, repeated, seed, text } from './values'

export interface SamplingFlags {
  maxTokens?: number
  temperature?: number
  topK?: number
  topP?: number
  minP?: number
  repetitionPenalty?: number
  seed?: bigint
  stop?: string[]
  ignoreEos?: boolean
  maxRepeats?: number
  timeoutMs?: number
}

export function addSamplingFlags(command: Command, { maxTokens }: { maxTokens: number }): Command {
  return command
    .optionsGroup('Sampling:')
    .addOption(flag('--max-tokens <n>', `most new tokens of an answer, 1 or more (default: ${maxTokens})`, integer(1)))
    .addOption(flag('--temperature <x>', '0 is greedy (default: 0)', number({ min: 0 })))
    .addOption(flag('--top-k <n>', 'keep the n likeliest, 0 is off (default: 0)', integer(0, 2 ** 31 - 1)))
    .addOption(
      flag(
        '--top-p <x>',
        'keep the smallest set that reaches this probability, 1 is off (default: 1)',
        number({ above: 0, max: 1 }),
      ),
    )
    .addOption(
      flag(
        '--min-p <x>',
        'drop tokens below this times the largest probability (default: 0)',
        number({ min: 0, below: 1 }),
      ),
    )
    .addOption(flag('--repetition-penalty <x>', 'of ids already seen, 1 is off (default: 1)', number({ above: 0 })))
    .addOption(flag('--seed <n>', 'seed of the draws, 0 to 2^64 - 1 (default: 0)', seed))
    .addOption(flag('--stop <text>', 'end before this text; may be repeated', repeated(text)))
    .addOption(flag('--ignore-eos', "go on behind the model's end tokens"))
    .addOption(
      flag(
        '--max-repeats <n>',
        'this many equal tokens in a row are an error, 0 is off (default: 64)',
        integer(0, 2 ** 31 - 1),
      ),
    )
    .addOption(
      flag('--timeout-ms <ms>', 'end an answer after this long, keeping what came (default: none)', integer(1)),
    )
}

export function samplingOptions(flags: SamplingFlags): TextOptions {
  return {
    ...pick(flags, ['maxTokens', 'temperature', 'topK', 'topP', 'minP', 'repetitionPenalty', 'seed', 'maxRepeats']),
    ...(flags.stop && { stopStrings: flags.stop }),
    ...(flags.ignoreEos && { stopTokens: [] }),
  }
}

/** A signal that also aborts when an answer's time is over. */
export function withTimeout(signal: AbortSignal, { timeoutMs }: SamplingFlags): AbortSignal {
  return timeoutMs === undefined ? signal : AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)])
}
