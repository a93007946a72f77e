/** The flags that say what is learned from. */
import type { Command } from 'commander'
import { type Tokenizer, TrainingData } from 'qwen3-nvfp4'
import { usage } from './exit'
import { flag, integer, list, number, oneOf, repeated, text } from './values'

export interface DataFlags {
  data?: string[]
  dataFormat?: DataFormat
  dataWeights?: number[]
  system?: string
  answers?: 'all' | 'last'
  thinking?: boolean
  separator?: string
  dataCacheMb?: number
  dataWorkers?: number
}

export type DataFormat = 'tsv' | 'chat' | 'text'

const formats = ['tsv', 'chat', 'text'] as const

export function addDataFlags(command: Command): Command {
  return command
    .optionsGroup('Data:')
    .addOption(
      flag(
        '--data <path>',
        'what to learn from; may be repeated, the files are then read one behind the other',
        repeated(text),
      ),
    )
    .addOption(
      flag(
        '--data-format <form>',
        'tsv, prompt<TAB>answer a line; chat, {"messages": [...]} a line; text (default: by the name: .tsv, .jsonl, others text)',
        oneOf(...formats),
      ),
    )
    .addOption(
      flag(
        '--data-weights <list>',
        'mix the files, each with its share of every stretch, as 3,1 (default: no mix)',
        list(number({ above: 0 })),
      ),
    )
    .addOption(flag('--system <text>', 'system message in front of every prompt of tsv (default: none)', text))
    .addOption(flag('--answers <which>', 'of a chat that have a loss: all, last (default: all)', oneOf('all', 'last')))
    .addOption(flag('--thinking', 'ask a thinking model to think first (default: as its template has it)'))
    .addOption(flag('--no-thinking', 'ask it not to').default(undefined))
    .addOption(
      flag('--separator <line>', 'a line that ends a document of text (default: none, each file is one)', text),
    )
    .addOption(
      flag(
        '--data-cache-mb <n>',
        'MiB of token ids to keep for later epochs, 0 or more (default: 1024)',
        number({ min: 0 }),
      ),
    )
    .addOption(
      flag(
        '--data-workers <n>',
        'threads that tokenise tsv and chats, 0 to 64, each with a tokenizer of its own (default: 0, the main thread does)',
        integer(0, 64),
      ),
    )
}

/** One set of all files of --data. */
export async function openData(flags: DataFlags, tokenizer: Tokenizer, signal?: AbortSignal): Promise<TrainingData> {
  const { data: paths = [], dataFormat, dataWeights } = flags
  if (paths.length === 0) throw usage('Expected --data')
  const forms = paths.map((path) => dataFormat ?? formatOf(path))
  if (!dataWeights) {
    if (new Set(forms).size > 1) throw usage('Expected --data-weights or --data-format with --data of several formats')
    return open(paths, forms[0]!, flags, tokenizer, signal)
  }
  if (dataWeights.length !== paths.length) {
    throw usage(
      `Expected ${paths.length} numbers for --data-weights, one for each --data, but received ${dataWeights.length}`,
    )
  }
  const sets = await Promise.all(paths.map((path, i) => open([path], forms[i]!, flags, tokenizer, signal)))
  return TrainingData.mix(sets.map((data, i) => ({ data, weight: dataWeights[i]! })))
}

/** A set of one file, read as --data is. */
export const openDataFile = (path: string, flags: DataFlags, tokenizer: Tokenizer, signal?: AbortSignal) =>
  open([path], flags.dataFormat ?? formatOf(path), flags, tokenizer, signal)

const formatOf = (path: string): DataFormat =>
  path.endsWith('.tsv') ? 'tsv' : path.endsWith('.jsonl') ? 'chat' : 'text'

function open(paths: string[], form: DataFormat, flags: DataFlags, tokenizer: Tokenizer, signal?: AbortSignal) {
  const { system, answers, thinking, separator, dataCacheMb, dataWorkers } = flags
  if (form === 'text') return TrainingData.fromText(paths, { tokenizer, signal, ...(separator && { separator }) })
  const lines = {
    tokenizer,
    signal,
    ...(thinking !== undefined && { enableThinking: thinking }),
    ...(dataCacheMb !== undefined && { cacheBytes: Math.round(dataCacheMb * 2 ** 20) }),
    ...(dataWorkers !== undefined && { workers: dataWorkers }),
  }
  if (form === 'chat') return TrainingData.fromChatJsonl(paths, { ...lines, ...(answers && { answers }) })
  return TrainingData.fromTsv(paths, { ...lines, ...(system && { systemPrompt: system }) })
}
