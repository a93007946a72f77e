/** `verify`: whether two checkpoints hold the same model. */
import { Command } from 'commander'
import { type Nibbles, readQwen3Config, verify, type VerifyResult } from 'qwen3-nvfp4'
import { Exit, exitCodes, interruptible } from './exit'
import { nibblesFlag } from './model-flags'
import { ByteBar, json, line } from './output'
import { flag, integer, number, oneOf, pick, text } from './values'

interface Flags {
  by?: 'values' | 'bits'
  tolerance?: number
  config?: string
  nibbles?: Nibbles
  threads?: number
  json?: boolean
}

export function verifyCommand(): Command {
  return new Command('verify')
    .description(
      'compare two checkpoints of any formats parameter by parameter, and list what differs; ends with code 1 when\n' +
        'anything does',
    )
    .argument('<a>', 'a .dat file, a safetensors file or a Hugging Face directory')
    .argument('<b>', 'another one')
    .addOption(
      flag(
        '--by <what>',
        'values, or bits of codes, scales and dense values (default: values)',
        oneOf('values', 'bits'),
      ),
    )
    .addOption(
      flag('--tolerance <x>', 'largest difference of two values that counts as none (default: 0)', number({ min: 0 })),
    )
    .addOption(flag('--config <file>', 'config.json, where neither has one', text))
    .addOption(nibblesFlag())
    .addOption(flag('--threads <n>', 'threads of the CPU (default: the cores this process may use)', integer(1, 1024)))
    .addOption(flag('--json', 'the whole comparison as one JSON object'))
    .action((a: string, b: string, flags: Flags) => interruptible((signal) => run(a, b, flags, signal)))
}

async function run(a: string, b: string, flags: Flags, signal: AbortSignal): Promise<void> {
  const bar = new ByteBar('comparing')
  let result: VerifyResult
  try {
    result = await verify(a, b, {
      ...pick(flags, ['by', 'tolerance', 'nibbles', 'threads']),
      ...(flags.config !== undefined && { config: await readQwen3Config(flags.config) }),
      signal,
      onProgress: bar.update,
    })
  } finally {
    bar.stop()
  }
  const { equal, compared, differences } = result
  if (flags.json) json(result)
  else {
    for (const { name, kind, message } of differences) line(`${name}: ${kind}: ${message}`)
    line(`${compared} parameters compared, ${differences.length} differ`)
  }
  if (!equal) throw new Exit(exitCodes.failure)
}
