/** `convert`: one checkpoint in another format. */
import { Command } from 'commander'
import {
  convert,
  type ConvertedTensor,
  type ConvertOptions,
  type ConvertResult,
  type FileStorage,
  readQwen3Config,
} from 'qwen3-nvfp4'
import { interruptible } from './exit'
import { nibblesFlag } from './model-flags'
import { ByteBar, json, line, table, warn } from './output'
import { flag, integer, list, oneOf, pick, text } from './values'

interface Flags extends Pick<
  ConvertOptions,
  | 'format'
  | 'scales'
  | 'scaleRule'
  | 'requantize'
  | 'denseType'
  | 'embedding'
  | 'head'
  | 'shardBytes'
  | 'nibbles'
  | 'threads'
> {
  weights?: FileStorage
  dense?: string[]
  modelDir?: string
  config?: string
  strict?: boolean
  verify: boolean
  report?: boolean
  json?: boolean
}

const formats = ['dat', 'hf-bf16', 'hf-fp16', 'hf-fp32', 'modelopt', 'compressed-tensors', 'gguf'] as const
const dense = ['fp32', 'fp16', 'bf16'] as const

export function convertCommand(): Command {
  return new Command('convert')
    .description(
      'write a checkpoint in another format, tensor by tensor; the target appears when all of it was written and read\n' +
        'back, and nothing half-written stays',
    )
    .argument('<source>', 'a .dat, .gguf or safetensors file or a Hugging Face directory')
    .argument('<target>', 'a .dat or .gguf file, or a new or empty folder')
    .optionsGroup('Format:')
    .addOption(
      flag('--format <name>', `${formats.join(', ')} (default: dat for *.dat, gguf for *.gguf)`, oneOf(...formats)),
    )
    .addOption(
      flag(
        '--weights <form>',
        'matrices of a .dat or .gguf: nvfp4, fp32, fp16, bf16, and q8_0 of a .gguf (default: nvfp4)',
        oneOf('nvfp4', ...dense, 'q8_0'),
      ),
    )
    .addOption(
      flag(
        '--scales <levels>',
        'of a .dat: one-level, the prior layout, or two-level (default: one-level)',
        oneOf('one-level', 'two-level'),
      ),
    )
    .addOption(
      flag(
        '--scale-rule <rule>',
        'of what is quantised: amax, four-over-six (default: amax)',
        oneOf('amax', 'four-over-six'),
      ),
    )
    .addOption(flag('--requantize', 'quantise NVFP4 anew where the target cannot hold it (default: refuse)'))
    .addOption(
      flag('--dense <list>', 'modules that stay dense: parts of names, or names with *, between commas', list(text)),
    )
    .addOption(
      flag(
        '--dense-type <type>',
        'of what stays dense: as-stored, fp32, fp16, bf16, and q8_0 in a .gguf (default: fp16 in a one-level .dat, as-stored in a two-level one and in a .gguf)',
        oneOf('as-stored', ...dense, 'q8_0'),
      ),
    )
    .addOption(
      flag('--embedding <form>', 'of a .dat: as-stored, nvfp4 (default: as-stored)', oneOf('as-stored', 'nvfp4')),
    )
    .addOption(
      flag(
        '--head <form>',
        'of a tied model in a .dat: own, as the prior layout has it, or tied (default: own in one level)',
        oneOf('own', 'tied'),
      ),
    )
    .addOption(flag('--shard-bytes <n>', 'of a safetensors file in a folder (default: 5000000000)', integer(1)))
    .optionsGroup('Source:')
    .addOption(flag('--model-dir <dir>', "folder of config.json and tokenizer (default: the source's)", text))
    .addOption(flag('--config <file>', 'config.json of the model, where it has none', text))
    .addOption(nibblesFlag())
    .addOption(flag('--strict', 'refuse any tensor that the model does not use (default: those of its own layers)'))
    .addOption(flag('--no-strict', 'refuse none, and say which there are'))
    .optionsGroup('Work:')
    .addOption(flag('--no-verify', 'do not read back what was written'))
    .addOption(flag('--threads <n>', 'threads of the CPU (default: the cores this process may use)', integer(1, 1024)))
    .addOption(flag('--report', 'print the error of every tensor'))
    .addOption(flag('--json', 'the whole result as one JSON object'))
    .action((source: string, target: string, flags: Flags) =>
      interruptible((signal) => run(source, target, flags, signal)),
    )
}

async function run(source: string, target: string, flags: Flags, signal: AbortSignal): Promise<void> {
  const { config, verify } = flags
  const begin = performance.now()
  const bar = new ByteBar('converting')
  try {
    const result = await convert(source, target, {
      ...pick(flags, ['format', 'weights', 'scales', 'scaleRule', 'requantize', 'dense', 'denseType', 'embedding']),
      ...pick(flags, ['head', 'shardBytes', 'modelDir', 'nibbles', 'strict', 'threads']),
      ...(config !== undefined && { config: await readQwen3Config(config) }),
      verify,
      signal,
      onProgress: bar.update,
      onWarning: ({ code, message }) => warn(`warning: ${code}: ${message}`),
    })
    bar.stop()
    if (flags.json) json(result)
    else print(result, (performance.now() - begin) / 1000, flags.report === true)
  } finally {
    bar.stop()
  }
}

function print({ files, bytes, tensors }: ConvertResult, seconds: number, report: boolean): void {
  for (const file of files) line(file)
  const inexact = tensors.filter(({ exact }) => !exact)
  const worst = inexact.reduce<ConvertedTensor | undefined>(
    (a, b) => (a && a.relativeRmsError >= b.relativeRmsError ? a : b),
    undefined,
  )
  const changed = worst
    ? `, ${inexact.length} of them changed, most ${worst.name} (${percent(worst.relativeRmsError)} RMS)`
    : ', all exact'
  line(`${tensors.length} parameters in ${(bytes / 2 ** 20).toFixed(1)} MiB and ${seconds.toFixed(1)} s${changed}`)
  if (!report) return
  const rows = tensors.map(({ name, from, to, relativeRmsError, largestError, subnormalScales }) => {
    return [name, from, to, percent(relativeRmsError), largestError.toExponential(2), percent(subnormalScales)]
  })
  line(`\n${table([['parameter', 'from', 'to', 'RMS error', 'largest', 'subnormal scales'], ...rows])}`)
}

const percent = (share: number): string => `${(100 * share).toFixed(3)} %`
