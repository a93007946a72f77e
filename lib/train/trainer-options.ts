import type { Recompute } from '../../types/native'
import type { OptimizerOptions } from '../../types/options'
import type { BatchOptions, BatchSource } from '../../types/training'
import type { Tokenizer } from '../chat/tokenizer'
import type { PackedAdamW } from '../model/packed-adamw'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'
import type { EarlyStopOptions } from './early-stop'
import type { Probe } from './probes'
import type { ScheduleOptions } from './schedule'
import type { TrainableSelection } from './trainable'

/** What the Trainer makes of its other options. */
export type OwnOptimizerOptions = Omit<OptimizerOptions, 'lr' | 'weightDecay' | 'decayNorms' | 'trainable'>

export interface TrainerOptions
  extends ScheduleOptions, Pick<BatchOptions, 'batchSize' | 'maxTokens' | 'pack' | 'shuffle' | 'truncate'> {
  model: Qwen3Nvfp4Model
  data: BatchSource

  /** Optimizer steps to take. Either this or `epochs`. */
  steps?: number
  /** Times that every sample is seen. Default: 1 when there are no `steps`. */
  epochs?: number
  /** Batches whose gradients are summed for a step, weighted by their counted labels, 1 or more. Default: 1. */
  accumulate?: number
  /** Seed of the order of the data and of stochastic rounding, 0 to 2^64 − 1. Default: 0. */
  seed?: number | bigint

  /** An optimizer of this model that stays the caller's to dispose, or options of one that the Trainer makes. */
  optimizer?: PackedAdamW | OwnOptimizerOptions
  /** Which parameters train. Default: all. */
  trainable?: TrainableSelection | ((name: string) => boolean)
  /** Decoupled weight decay, 0 or more. Default: 0. */
  weightDecay?: number
  /** Whether decay applies to norms too. Default: false. */
  decayNorms?: boolean
  /**
   * Most global norm of the gradients, above 0; Infinity does not clip. Without accumulation the norm is that of the
   * step before: see TrainStepOptions. Default: 1.
   */
  maxGradNorm?: number
  /** Leave out steps whose loss is above this many times the mean of the last 32, above 1. Default: none. */
  skipLossFactor?: number
  /**
   * Leave out steps whose gradient norm is above this many times the mean of the last 32, above 1. Gradients are then kept
   * until the update, as with accumulation, and clipped by their own norm. Default: none.
   */
  skipNormFactor?: number
  /**
   * 'hidden-l1' trains the final hidden states towards those of `teacher`, by the mean of |difference|, for debugging;
   * the validation loss stays a cross-entropy. Default: 'cross-entropy'.
   */
  loss?: 'cross-entropy' | 'hidden-l1'
  /** A model of the same vocabulary and hidden size, which does not train. */
  teacher?: Qwen3Nvfp4Model
  /** What the backward pass computes again; see LossOptions. Default: 'all'. */
  recompute?: Recompute

  /** Data that is not trained on, whose loss is measured. Default: none. */
  validation?: BatchSource
  /** Steps between validations, 1 or more; there is one at the end too. Default: at the end only. */
  evalEvery?: number
  /** Ends training when the validation loss no longer falls. Default: never. */
  earlyStop?: EarlyStopOptions

  /** Questions whose answers are generated now and then. Default: none. */
  probes?: readonly Probe[]
  /** Steps between answers to the probes, 1 or more; they are asked at the end too. Default: evalEvery. */
  sampleEvery?: number
  /** Most tokens of an answer, 1 or more. Default: 64. */
  sampleTokens?: number
  /** Of the probes. */
  tokenizer?: Tokenizer

  /** Folder of checkpoints, which this process alone may write. Default: none are written. */
  checkpointDir?: string | URL
  /** Steps between checkpoints, 1 or more; there is one at the end too. Default: at the end only. */
  checkpointEvery?: number
  /** Checkpoints to keep, the latest ones, 1 or more. Default: 3. */
  keep?: number
  /**
   * true goes on from the last checkpoint of checkpointDir, or begins when it has none; a path names a checkpoint, or a
   * folder of them. Default: false, which refuses a folder that has some.
   */
  resume?: boolean | string | URL
  /** Names of settings in which this run may differ from that of the checkpoint. Default: none. */
  allowChanged?: readonly string[]

  /** File of JSON lines, an event each, to which this run is added. Default: none. */
  logFile?: string | URL
  /** File of the curve of the loss, `.svg` or `.png` (with @resvg/resvg-js), written at checkpoints and at the end. Default: none. */
  lossCurve?: string | URL
  /** Whether to show a progress bar on stderr. Default: false. */
  progress?: boolean

  /** Ends training after the step that runs, with a checkpoint; `run` resolves with reason 'aborted'. */
  signal?: AbortSignal
  /** Whether the first SIGINT ends training likewise, with reason 'interrupted'. Default: false. */
  handleSigint?: boolean
}
