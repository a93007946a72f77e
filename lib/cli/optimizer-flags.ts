/** The flags of the packed AdamW, and of what it trains. */
import type { Command } from 'commander'
import type {
  GradientStorage,
  Moments,
  OptimizerOptions,
  OptimizerWeights,
  Recompute,
  TrainableSelection,
} from 'qwen3-nvfp4'
import { InvalidArgumentError } from 'commander'
import { flag, integer, list, number, oneOf, pick, repeated, text } from './values'

export interface OptimizerFlags {
  betas?: number[]
  eps?: number
  weightDecay?: number
  decayNorms?: boolean
  optimizerWeights?: OptimizerWeights
  moments?: Moments
  gradients?: GradientStorage
  allowManyMicroBatches?: boolean
  stepChunkRows?: number
  /** false with --no-residual-in-forward. */
  residualInForward: boolean
  maxGradNorm?: number
  recompute?: Recompute
  lastLayers?: number
  trainNames?: string[]
  /** undefined with neither --train-embedding nor --no-train-embedding. */
  trainEmbedding?: boolean
  trainHead?: boolean
}

const weightForms = ['nvfp4', 'nvfp4+residual', 'bf16', 'fp32'] as const
const momentForms = ['nvfp4', 'int8', 'bf16', 'fp32'] as const
const gradientForms = ['fp32', 'bf16', 'nvfp4'] as const

function betas(value: string): number[] {
  const both = list(number({ min: 0, below: 1 }))(value)
  if (both.length !== 2) throw new InvalidArgumentError('Expected two numbers with a comma between them.')
  return both
}

const norm = (value: string): number => (value === 'none' ? Infinity : number({ above: 0 })(value))

export function addOptimizerFlags(command: Command): Command {
  return command
    .optionsGroup('Optimizer:')
    .addOption(flag('--betas <b1,b2>', 'decay rates of the moments, each in [0, 1) (default: 0.9,0.999)', betas))
    .addOption(
      flag('--eps <x>', 'added to the root of the second moment, above 0 (default: 1e-8)', number({ above: 0 })),
    )
    .addOption(flag('--weight-decay <x>', 'decoupled, 0 or more (default: 0)', number({ min: 0 })))
    .addOption(flag('--decay-norms', 'let it apply to norms too'))
    .addOption(
      flag(
        '--optimizer-weights <form>',
        `behind NVFP4 weights: ${weightForms.join(', ')} (default: nvfp4, nothing more)`,
        oneOf(...weightForms),
      ),
    )
    .addOption(flag('--moments <form>', `${momentForms.join(', ')} (default: nvfp4)`, oneOf(...momentForms)))
    .addOption(
      flag(
        '--gradients <form>',
        `gradients that are kept: ${gradientForms.join(', ')} (default: fp32)`,
        oneOf(...gradientForms),
      ),
    )
    .addOption(flag('--allow-many-micro-batches', 'sum more than four gradients in nvfp4'))
    .addOption(
      flag(
        '--step-chunk-rows <n>',
        'rows whose gradient exists at once, 1 or more (default: 1024, on a GPU 12288)',
        integer(1),
      ),
    )
    .addOption(flag('--no-residual-in-forward', 'with nvfp4+residual, leave the residual out of the forward pass'))
    .addOption(
      flag(
        '--max-grad-norm <x>',
        "clip the global norm of the gradients to this, above 0, or 'none' (default: 1)",
        norm,
      ),
    )
    .addOption(
      flag(
        '--recompute <how>',
        'in the backward pass: all (least memory), cheap, none (default: all)',
        oneOf('all', 'cheap', 'none'),
      ),
    )
    .optionsGroup('What trains:')
    .addOption(
      flag(
        '--last-layers <n>',
        'the last layers and the norm behind them, 1 or more (default: everything)',
        integer(1),
      ),
    )
    .addOption(
      flag('--train-names <pattern>', 'only parameters of such names, * is anything; may be repeated', repeated(text)),
    )
    .addOption(flag('--train-embedding', 'the embedding (default: yes, with --last-layers no)'))
    .addOption(flag('--no-train-embedding', 'not the embedding').default(undefined))
    .addOption(flag('--train-head', 'the head, which is the embedding when it is tied (default: as the embedding)'))
    .addOption(flag('--no-train-head', 'not the head').default(undefined))
}

/** Of createOptimizer, without what a Trainer has options of its own for. */
export function optimizerOptions(flags: OptimizerFlags): OptimizerOptions {
  return {
    ...pick(flags, ['eps', 'moments', 'gradients', 'allowManyMicroBatches', 'stepChunkRows', 'residualInForward']),
    ...(flags.betas && { betas: flags.betas as [number, number] }),
    ...(flags.optimizerWeights && { weights: flags.optimizerWeights }),
  }
}

export function trainableSelection(flags: OptimizerFlags): TrainableSelection {
  return {
    ...pick(flags, ['lastLayers']),
    ...(flags.trainNames && { names: flags.trainNames }),
    ...(flags.trainEmbedding !== undefined && { embedding: flags.trainEmbedding }),
    ...(flags.trainHead !== undefined && { head: flags.trainHead }),
  }
}
