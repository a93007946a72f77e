/** The flags that say which model, where it computes, and which tokenizer belongs to it. */
import { stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Command } from 'commander'
import {
  type Compute,
  type InitializeOptions,
  type LoadOptions,
  type Nibbles,
  type Qwen3Config,
  Qwen3Nvfp4Model,
  readQwen3Config,
  type Storage,
  Tokenizer,
} from 'qwen3-nvfp4'
import { nearestName } from '../check'
import { usage } from './exit'
import { ByteBar, note } from './output'
import { presets } from './presets'
import { device, flag, integer, number, oneOf, pick, seed, text } from './values'

export interface ModelFlags {
  model?: string
  randomModel?: string
  initSeed?: bigint
  initStddev?: number
  modelDir?: string
  config?: string
  tokenizer?: string
  device?: string
  threads?: number
  weights?: Storage
  compute?: Compute
  embedding?: 'as-stored' | 'nvfp4'
  scales?: 'two-level' | 'one-level'
  scaleRule?: 'amax' | 'four-over-six'
  nibbles?: Nibbles
  /** Undefined without --strict and --no-strict. */
  strict?: boolean
}

const storages = ['nvfp4', 'fp32', 'bf16', 'fp16'] as const

/** Of every command that reads a checkpoint. */
export const nibblesFlag = () =>
  flag(
    '--nibbles <order>',
    'of bitsandbytes codes in a .dat that has no state: high-first, low-first (default: high-first)',
    oneOf('high-first', 'low-first'),
  )

export function addModelFlags(command: Command, { tokenizer }: { tokenizer: boolean }): Command {
  command
    .optionsGroup('Model:')
    .addOption(flag('--model <path>', 'a .dat or .gguf file, or a Hugging Face directory with safetensors files', text))
    .addOption(
      flag(
        '--random-model <name>',
        `random weights instead: ${Object.keys(presets).join(', ')}, or the path of a config.json`,
        text,
      ),
    )
    .addOption(flag('--init-seed <n>', 'seed of random weights, 0 to 2^64 - 1 (default: 0)', seed))
    .addOption(flag('--init-stddev <x>', 'their standard deviation, above 0 (default: 0.02)', number({ above: 0 })))
    .addOption(flag('--model-dir <dir>', 'folder of config.json (default: that of the .dat file)', text))
    .addOption(flag('--config <file>', 'config.json of the model, where it has none', text))
  if (tokenizer) {
    const beside =
      "tokenizer.json, its folder or a .gguf (default: --model's folder, then --model-dir; a .gguf has its own)"
    command.addOption(flag('--tokenizer <path>', beside, text))
  }
  return command
    .addOption(
      flag(
        '--weights <form>',
        `how matrices are kept: ${storages.join(', ')} (default: as a .dat stores them, else nvfp4)`,
        oneOf(...storages),
      ),
    )
    .addOption(
      flag(
        '--embedding <form>',
        'with nvfp4, a dense embedding too: as-stored, nvfp4 (default: as-stored for a .dat, else nvfp4)',
        oneOf('as-stored', 'nvfp4'),
      ),
    )
    .addOption(
      flag(
        '--scales <levels>',
        'of what is quantised: two-level, one-level (default: two-level)',
        oneOf('two-level', 'one-level'),
      ),
    )
    .addOption(
      flag(
        '--scale-rule <rule>',
        'of what is quantised: amax, four-over-six (default: amax)',
        oneOf('amax', 'four-over-six'),
      ),
    )
    .addOption(nibblesFlag())
    .addOption(flag('--strict', 'refuse any tensor that the model does not use (default: those of its own layers)'))
    .addOption(flag('--no-strict', 'refuse none, and say which there are'))
    .optionsGroup('Device:')
    .addOption(flag('--device <name>', "'cpu' or 'cuda:N', never replaced by another (default: cpu)", device))
    .addOption(flag('--threads <n>', 'threads of the CPU (default: the cores this process may use)', integer(1, 1024)))
    .addOption(
      flag(
        '--compute <form>',
        'of forward passes: w4a16, w4a4 on Blackwell alone (default: w4a16)',
        oneOf('w4a16', 'w4a4'),
      ),
    )
}

/** Loads or makes the model; shows progress in a terminal. */
export async function openModel(flags: ModelFlags, signal: AbortSignal): Promise<Qwen3Nvfp4Model> {
  const { model, randomModel, config } = flags
  if ((model === undefined) === (randomModel === undefined)) {
    throw usage('Expected one of --model and --random-model but received ' + (model === undefined ? 'neither' : 'both'))
  }
  const begin = performance.now()
  const opened = model === undefined ? await initialize(flags, signal) : await load(model, flags, config, signal)
  const name = model ?? `random ${randomModel}`
  const took = ((performance.now() - begin) / 1000).toFixed(2)
  note(`${name}: ${(opened.parameterCount / 1e6).toFixed(1)} M parameters on ${opened.device} in ${took} s`)
  return opened
}

async function load(path: string, flags: ModelFlags, config: string | undefined, signal: AbortSignal) {
  const options: LoadOptions = {
    ...pick(flags, [
      'device',
      'threads',
      'compute',
      'modelDir',
      'weights',
      'embedding',
      'scales',
      'scaleRule',
      'nibbles',
      'strict',
    ]),
    ...(config !== undefined && { config: await readQwen3Config(config) }),
    signal,
  }
  const bar = new ByteBar('loading')
  try {
    return await Qwen3Nvfp4Model.load(path, { ...options, onProgress: bar.update })
  } finally {
    bar.stop()
  }
}

async function initialize(flags: ModelFlags, signal: AbortSignal) {
  const { initSeed, initStddev } = flags
  const options: InitializeOptions = {
    ...pick(flags, ['device', 'threads', 'compute', 'weights', 'scales']),
    ...(initSeed !== undefined && { seed: initSeed }),
    ...(initStddev !== undefined && { stddev: initStddev }),
    signal,
  }
  return Qwen3Nvfp4Model.initialize(await randomConfig(flags.randomModel!), options)
}

async function randomConfig(name: string): Promise<Qwen3Config> {
  const preset = presets[name.toLowerCase()]
  if (preset) return preset
  if (/[./]/.test(name)) return readQwen3Config(name)
  const nearest = nearestName(name, Object.keys(presets))
  const hint = nearest === undefined ? '' : `; did you mean ${nearest}?`
  throw usage(`Expected ${Object.keys(presets).join(', ')} or a path for --random-model but received ${name}${hint}`)
}

/** The tokenizer of --tokenizer, or the one beside the model. */
export async function openTokenizer(flags: ModelFlags): Promise<Tokenizer> {
  if (flags.tokenizer !== undefined) return Tokenizer.fromFile(flags.tokenizer)
  if (flags.model?.endsWith('.gguf')) return Tokenizer.fromFile(flags.model)
  const folders: string[] = []
  if (flags.model !== undefined) folders.push((await isFolder(flags.model)) ? flags.model : dirname(flags.model))
  if (flags.modelDir !== undefined) folders.push(flags.modelDir)
  const candidates = folders.map((folder) => join(folder, 'tokenizer.json'))
  for (const candidate of candidates) {
    if (await exists(candidate)) return Tokenizer.fromFile(candidate)
  }
  const looked = candidates.length > 0 ? `; looked for ${candidates.join(' and ')}` : ''
  throw usage(`Expected --tokenizer, as there is no tokenizer beside the model${looked}`)
}

const isFolder = (path: string): Promise<boolean> =>
  stat(path).then(
    (info) => info.isDirectory(),
    () => false,
  )

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  )
