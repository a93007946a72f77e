/** The flags of `train` that are a Trainer's own. */
import type { Command } from 'commander'
import type { ScheduleName } from 'qwen3-nvfp4'
import { addDataFlags, type DataFlags } from './data-flags'
import { addModelFlags, type ModelFlags } from './model-flags'
import { addOptimizerFlags, type OptimizerFlags } from './optimizer-flags'
import { flag, integer, list, number, oneOf, repeated, seed, text } from './values'

export interface TrainFlags extends ModelFlags, DataFlags, OptimizerFlags {
  maxTokens: number
  batchSize?: number
  accumulate?: number
  pack?: boolean
  /** false with --no-shuffle. */
  shuffle: boolean
  truncate?: boolean
  steps?: number
  epochs?: number
  seed?: bigint
  lr?: number
  schedule?: ScheduleName
  warmupSteps?: number
  minLr?: number
  decaySteps?: number
  skipLossFactor?: number
  skipNormFactor?: number
  teacher?: string
  validation?: string
  evalEvery?: number
  patience?: number
  minDelta?: number
  probe?: string[]
  probesFrom?: string
  sampleEvery?: number
  sampleTokens?: number
  out?: string
  checkpointDir?: string
  checkpointEvery?: number
  keep?: number
  /** true without a path. */
  resume?: string | true
  allowChanged?: string[]
  logFile?: string
  lossCurve?: string
  logEvery?: number
  memoryReport?: string
  gpuLimitGb?: number
  hostLimitGb?: number
  overSecs?: number
  json?: boolean
}

const schedules = ['cosine', 'linear', 'constant', 'wsd'] as const

export function addTrainFlags(command: Command): Command {
  addModelFlags(command, { tokenizer: true })
  addDataFlags(command)
  addLengthFlags(command)
  addOptimizerFlags(command)
  addWatchFlags(command)
  return addFileFlags(command)
}

function addLengthFlags(command: Command): Command {
  const every = integer(1)
  return command
    .optionsGroup('Batches:')
    .addOption(flag('--max-tokens <n>', 'most tokens of a row, 2 or more', integer(2)).default(1024))
    .addOption(flag('--batch-size <n>', 'rows of a batch, 1 or more (default: 1)', every))
    .addOption(flag('--accumulate <n>', 'batches whose gradients are summed for a step, 1 or more (default: 1)', every))
    .addOption(flag('--pack', 'put several samples into a row, none of which attends to another'))
    .addOption(flag('--truncate', 'cut prompts that are too long from the left (default: refuse them)'))
    .addOption(flag('--no-shuffle', 'take the samples in the order of the files'))
    .optionsGroup('Length and learning rate:')
    .addOption(flag('--steps <n>', 'optimizer steps to take, 1 or more; either this or --epochs', every))
    .addOption(flag('--epochs <n>', 'times that every sample is seen, 1 or more (default: 1)', every))
    .addOption(flag('--seed <n>', 'of the order of the data and of rounding, 0 to 2^64 - 1 (default: 0)', seed))
    .addOption(flag('--lr <x>', 'largest learning rate, 0 or more (default: 1e-4)', number({ min: 0 })))
    .addOption(
      flag('--schedule <name>', `how it falls: ${schedules.join(', ')} (default: cosine)`, oneOf(...schedules)),
    )
    .addOption(flag('--warmup-steps <n>', 'steps over which it rises, 0 or more (default: 0)', integer(0)))
    .addOption(flag('--min-lr <x>', 'what it falls towards, 0 to --lr (default: 0)', number({ min: 0 })))
    .addOption(flag('--decay-steps <n>', 'with wsd, steps of the fall, 1 or more (default: a fifth of all)', every))
    .optionsGroup('Loss:')
    .addOption(
      flag(
        '--teacher <path>',
        'train final hidden states towards those of this model, to debug with (default: none, the cross-entropy of labels)',
        text,
      ),
    )
    .addOption(
      flag(
        '--skip-loss-factor <x>',
        'leave out steps whose loss is above so many times the mean of the last 32, above 1 (default: none)',
        number({ above: 1 }),
      ),
    )
    .addOption(
      flag(
        '--skip-norm-factor <x>',
        'the same of the norm of gradients, which are then kept until the step, above 1 (default: none)',
        number({ above: 1 }),
      ),
    )
}

function addWatchFlags(command: Command): Command {
  const every = integer(1)
  return command
    .optionsGroup('Validation:')
    .addOption(flag('--validation <path>', 'data whose loss is measured, read as --data is (default: none)', text))
    .addOption(flag('--eval-every <n>', 'steps between validations, 1 or more (default: at the end only)', every))
    .addOption(flag('--patience <n>', 'stop after so many validations without a better loss (default: never)', every))
    .addOption(flag('--min-delta <x>', 'by how much lower is better, 0 or more (default: 0)', number({ min: 0 })))
    .addOption(flag('--probe <text>', 'a question to answer now and then; may be repeated', repeated(text)))
    .addOption(
      flag(
        '--probes-from <path>',
        'JSON array of {"prompt", "expect", "forbid", "group"}, with texts (default: none)',
        text,
      ),
    )
    .addOption(
      flag('--sample-every <n>', 'steps between answers to these, 1 or more (default: as --eval-every)', every),
    )
    .addOption(flag('--sample-tokens <n>', 'most tokens of such an answer, 1 or more (default: 64)', every))
}

function addFileFlags(command: Command): Command {
  const every = integer(1)
  const positive = number({ above: 0 })
  return command
    .optionsGroup('Results:')
    .addOption(flag('--out <path>', 'write the trained model as .dat at the end (default: none)', text))
    .addOption(
      flag('--checkpoint-dir <dir>', 'folder of checkpoints, of this run alone (default: none are written)', text),
    )
    .addOption(
      flag(
        '--checkpoint-every <n>',
        'steps between them, 1 or more; there is one at the end too (default: at the end only)',
        every,
      ),
    )
    .addOption(flag('--keep <n>', 'checkpoints to keep, the latest ones, 1 or more (default: 3)', every))
    .addOption(
      flag(
        '--resume [path]',
        'go on from the last checkpoint of --checkpoint-dir, if it has one, or from that at the path',
      ),
    )
    .addOption(
      flag(
        '--allow-changed <list>',
        'settings in which this run may differ from the checkpoint (default: none)',
        list(text),
      ),
    )
    .addOption(flag('--log-file <path>', 'JSON lines, an event each, to which this run is added (default: none)', text))
    .addOption(
      flag('--loss-curve <path>', 'draw the loss, .svg or .png, at checkpoints and at the end (default: none)', text),
    )
    .addOption(
      flag('--log-every <n>', 'print a line every n steps, 1 or more (default: never; a terminal has a bar)', every),
    )
    .addOption(flag('--memory-report <path>', 'write what memory held, as JSON (default: none)', text))
    .addOption(flag('--json', 'every event as a JSON object, in place of text'))
    .optionsGroup('Memory guard (stops with a checkpoint; one GB is 2^30 bytes):')
    .addOption(flag('--gpu-limit-gb <x>', 'most GPU memory in use by all processes, above 0 (default: none)', positive))
    .addOption(flag('--host-limit-gb <x>', 'most host memory of this process, above 0 (default: none)', positive))
    .addOption(flag('--over-secs <s>', 'how long a limit must be passed, 0 or more (default: 0)', number({ min: 0 })))
}
