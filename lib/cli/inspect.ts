/** `inspect`: what is in a checkpoint, and whether it is the model that its configuration says. */
import { Command } from 'commander'
import { type CheckpointInspection, inspect, type InspectedTensor, readQwen3Config } from 'qwen3-nvfp4'
import { Exit, exitCodes, interruptible } from './exit'
import { json, line, table } from './output'
import { flag, pick, text } from './values'

interface Flags {
  tensors?: boolean
  scales?: boolean
  modelDir?: string
  config?: string
  json?: boolean
}

export function inspectCommand(): Command {
  return new Command('inspect')
    .description(
      'say what is in a .dat, .gguf or safetensors file or a Hugging Face directory, from its index alone; ends with code 1\n' +
        'when it would not load',
    )
    .argument('<path>', 'the checkpoint')
    .addOption(flag('--tensors', 'print every tensor'))
    .addOption(flag('--scales', 'read the block scales too and print their statistics'))
    .addOption(flag('--model-dir <dir>', 'folder of config.json (default: that of the file)', text))
    .addOption(flag('--config <file>', 'config.json of the model, where it has none', text))
    .addOption(flag('--json', 'the whole inspection as one JSON object'))
    .action((path: string, flags: Flags) => interruptible((signal) => run(path, flags, signal)))
}

async function run(path: string, flags: Flags, signal: AbortSignal): Promise<void> {
  const found = await inspect(path, {
    ...pick(flags, ['scales', 'modelDir']),
    ...(flags.config !== undefined && { config: await readQwen3Config(flags.config) }),
    signal,
  })
  if (flags.json) json(found)
  else print(found, flags)
  const { problems, missing, unexpected } = found
  if (problems.length + missing.length + unexpected.length > 0) throw new Exit(exitCodes.failure)
}

function print(found: CheckpointInspection, flags: Flags): void {
  const { format, files, config, parameterCount, dtypes, tensors } = found
  for (const { path, bytes, tensors } of files) line(`${path}  ${format}  ${mib(bytes)}  ${tensors} tensors`)
  if (config) {
    const { numHiddenLayers: L, hiddenSize: H, numAttentionHeads: Q, numKeyValueHeads: KV, headDim: D } = config
    const { intermediateSize: F, vocabSize: V, tieWordEmbeddings } = config
    line(
      `${(parameterCount! / 1e6).toFixed(1)} M parameters: ${L} layers, hidden ${H}, heads ${Q}/${KV} of ${D}, ffn ${F}, vocabulary ${V}, ${tieWordEmbeddings ? 'tied' : 'untied'}`,
    )
  }
  line(
    `\n${table([['dtype', 'tensors', 'bytes'], ...dtypes.map(({ dtype, tensors, bytes }) => [dtype, String(tensors), mib(bytes)])])}`,
  )
  if (flags.tensors) {
    const rows = tensors.map(({ key, dtype, shape, bytes }) => [key, dtype, `[${shape.join(', ')}]`, String(bytes)])
    line(`\n${table([['tensor', 'dtype', 'shape', 'bytes'], ...rows])}`)
  }
  if (flags.scales) printScales(tensors)
  for (const name of ['missing', 'unexpected', 'ignored', 'problems'] as const) {
    const items = found[name]
    if (items.length > 0) line(`\n${name}: ${items.length}\n${items.map((item) => `  ${item}`).join('\n')}`)
  }
}

function printScales(tensors: readonly InspectedTensor[]): void {
  const rows = tensors.flatMap(({ key, scales }) => {
    if (!scales) return []
    const { blocks, smallest, largest, zero, subnormal, invalid } = scales
    const share = (count: number) => `${((100 * count) / blocks).toFixed(2)} %`
    return [[key, String(blocks), String(smallest), String(largest), share(zero), share(subnormal), String(invalid)]]
  })
  line(`\n${table([['scales', 'blocks', 'smallest', 'largest', 'zero', 'subnormal', 'invalid'], ...rows])}`)
}

const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`
