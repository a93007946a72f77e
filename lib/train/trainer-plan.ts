/** The options of a Trainer, checked and with their defaults. */
import type { Recompute } from '../../types/native'
import type { BatchOptions, BatchSource } from '../../types/training'
import {
  checkBoolean,
  checkInteger,
  checkNumber,
  checkOneOf,
  checkOptions,
  checkPath,
  checkSeed,
  checkSignal,
  checkString,
  wrongType,
  wrongValue,
} from '../check'
import type { Tokenizer } from '../chat/tokenizer'
import { checkOptimizerOptions, type PackedAdamW } from '../model/packed-adamw'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'
import { checkEarlyStop, type EarlyStopOptions } from './early-stop'
import { checkCurvePath } from './loss-curve'
import { checkProbes, type Probe } from './probes'
import { planSchedule, type ScheduleOptions } from './schedule'
import { selectTrainable } from './trainable'
import type { OwnOptimizerOptions, TrainerOptions } from './trainer-options'

export interface TrainerPlan {
  model: Qwen3Nvfp4Model
  data: BatchSource
  /** The caller's own, or a function that makes one. */
  optimizer: PackedAdamW | (() => PackedAdamW)
  steps?: number
  epochs: number
  accumulate: number
  schedule: ScheduleOptions
  maxGradNorm?: number
  recompute: Recompute
  skipLossFactor?: number
  skipNormFactor?: number
  /** Whether steps are not fused. */
  keepsGradients: boolean
  /** Of the loss 'hidden-l1'. */
  teacher?: Qwen3Nvfp4Model
  batches: Omit<BatchOptions, 'from' | 'epochs' | 'signal'>
  validation?: BatchSource
  /** Infinity: at the end only. So are the others. */
  evalEvery: number
  earlyStop?: Required<EarlyStopOptions>
  probes: readonly Probe[]
  sampleEvery: number
  sampleTokens: number
  tokenizer?: Tokenizer
  checkpointDir?: string
  checkpointEvery: number
  keep: number
  /** A path, or true for checkpointDir. */
  resume: boolean | string
  allowChanged: readonly string[]
  logFile?: string
  lossCurve?: string
  progress: boolean
  signal?: AbortSignal
  handleSigint: boolean
}

const optionNames: (keyof TrainerOptions)[] = [
  'model',
  'data',
  'steps',
  'epochs',
  'accumulate',
  'seed',
  'batchSize',
  'maxTokens',
  'pack',
  'shuffle',
  'truncate',
  'lr',
  'schedule',
  'warmupSteps',
  'minLr',
  'decaySteps',
  'optimizer',
  'trainable',
  'weightDecay',
  'decayNorms',
  'maxGradNorm',
  'recompute',
  'skipLossFactor',
  'skipNormFactor',
  'loss',
  'teacher',
  'validation',
  'evalEvery',
  'earlyStop',
  'probes',
  'sampleEvery',
  'sampleTokens',
  'tokenizer',
  'checkpointDir',
  'checkpointEvery',
  'keep',
  'resume',
  'allowChanged',
  'logFile',
  'lossCurve',
  'progress',
  'signal',
  'handleSigint',
]

export function checkTrainerOptions(options: TrainerOptions): TrainerPlan {
  const given = checkOptions(options, 'options', optionNames)
  const { model, data, tokenizer } = given
  if (typeof model?.createOptimizer !== 'function') throw wrongType('a Qwen3Nvfp4Model', 'model', model)
  if (tokenizer !== undefined && typeof tokenizer?.applyChatTemplate !== 'function') {
    throw wrongType('a Tokenizer', 'tokenizer', tokenizer)
  }
  const plan: TrainerPlan = {
    model,
    data: checkSource('data', data),
    optimizer: checkOptimizer(given),
    ...checkLength(given),
    accumulate: checkInteger('accumulate', given.accumulate ?? 1, 1),
    schedule: checkSchedule(given),
    maxGradNorm: checkMaxGradNorm(given.maxGradNorm),
    recompute: checkOneOf<Recompute>('recompute', given.recompute ?? 'all', ['all', 'cheap', 'none']),
    skipLossFactor: checkFactor('skipLossFactor', given.skipLossFactor),
    skipNormFactor: checkFactor('skipNormFactor', given.skipNormFactor),
    teacher: checkTeacher(given),
    keepsGradients: (given.accumulate ?? 1) > 1 || given.skipNormFactor !== undefined || given.teacher !== undefined,
    batches: checkBatches(given),
    ...checkWatching(given),
    ...checkFiles(given),
    tokenizer,
    progress: checkBoolean('progress', given.progress ?? false),
    signal: checkSignal(given.signal),
    handleSigint: checkBoolean('handleSigint', given.handleSigint ?? false),
  }
  if (plan.probes.length > 0 && !tokenizer) throw wrongType('a Tokenizer, which probes need,', 'tokenizer', tokenizer)
  if (plan.earlyStop && !plan.validation)
    throw wrongType('a validation set, which earlyStop needs,', 'validation', undefined)
  return plan
}

function checkSource(name: string, source: unknown): BatchSource {
  if (typeof (source as BatchSource | undefined)?.batches !== 'function')
    throw wrongType('a TrainingData', name, source)
  return source as BatchSource
}

function checkLength({ steps, epochs }: TrainerOptions): Pick<TrainerPlan, 'steps' | 'epochs'> {
  if (steps === undefined) return { epochs: checkInteger('epochs', epochs ?? 1, 1) }
  if (epochs !== undefined) throw wrongValue('nothing beside steps', 'epochs', epochs)
  return { steps: checkInteger('steps', steps, 1), epochs: Infinity }
}

function checkSchedule({ lr, schedule, warmupSteps, minLr, decaySteps, steps }: TrainerOptions): ScheduleOptions {
  const options = { lr, schedule, warmupSteps, minLr, decaySteps }
  // The steps of epochs are known once the data is: until then all but their number is checked.
  planSchedule(options, steps ?? Number.MAX_SAFE_INTEGER)
  return options
}

/** undefined: no clipping. */
function checkMaxGradNorm(norm = 1): number | undefined {
  return norm === Infinity ? undefined : checkNumber('maxGradNorm', norm, { above: 0 })
}

const checkFactor = (name: string, factor: number | undefined): number | undefined =>
  factor === undefined ? undefined : checkNumber(name, factor, { above: 1 })

function checkTeacher({ model, loss = 'cross-entropy', teacher }: TrainerOptions): Qwen3Nvfp4Model | undefined {
  if (checkOneOf('loss', loss, ['cross-entropy', 'hidden-l1']) === 'cross-entropy') {
    if (teacher !== undefined) throw wrongValue("nothing with the loss 'cross-entropy'", 'teacher', teacher)
    return undefined
  }
  if (typeof teacher?.forward !== 'function') throw wrongType("a model, with the loss 'hidden-l1',", 'teacher', teacher)
  for (const size of ['hiddenSize', 'vocabSize'] as const) {
    if (teacher.config[size] !== model.config[size]) {
      throw wrongValue(`${model.config[size]}, as the model has,`, `teacher.config.${size}`, teacher.config[size])
    }
  }
  return teacher
}

function checkOptimizer(given: TrainerOptions): TrainerPlan['optimizer'] {
  const { model, optimizer = {}, lr = 1e-4 } = given
  if ('trainStep' in optimizer) {
    for (const name of ['trainable', 'weightDecay', 'decayNorms'] as const) {
      if (given[name] !== undefined)
        throw wrongValue('nothing beside an optimizer, which has its own,', name, given[name])
    }
    return optimizer
  }
  const own: OwnOptimizerOptions = checkOptions(optimizer, 'optimizer')
  const options = {
    seed: given.seed,
    ...own,
    lr,
    weightDecay: given.weightDecay,
    decayNorms: given.decayNorms ?? false,
    trainable: given.trainable && selectTrainable(given.trainable, model.config),
  }
  checkOptimizerOptions(options, [...model.parameters()], model.device)
  return () => model.createOptimizer(options)
}

function checkBatches(given: TrainerOptions): TrainerPlan['batches'] {
  const accumulate = given.accumulate ?? 1
  return {
    batchSize: checkInteger('batchSize', given.batchSize ?? 1, 1),
    maxTokens: checkInteger('maxTokens', given.maxTokens, 2),
    pack: checkBoolean('pack', given.pack ?? false),
    shuffle: given.shuffle === undefined ? undefined : checkBoolean('shuffle', given.shuffle),
    truncate: checkBoolean('truncate', given.truncate ?? false),
    seed: checkSeed('seed', given.seed ?? 0),
    vocabSize: given.model.config.vocabSize,
    padTokenId: given.tokenizer?.padTokenId,
    lookAhead: 2 * accumulate,
  }
}

const checkEvery = (name: string, steps: number | undefined): number =>
  steps === undefined ? Infinity : checkInteger(name, steps, 1)

type Watching = 'validation' | 'evalEvery' | 'earlyStop' | 'probes' | 'sampleEvery' | 'sampleTokens'

function checkWatching(given: TrainerOptions): Pick<TrainerPlan, Watching> {
  const evalEvery = checkEvery('evalEvery', given.evalEvery)
  return {
    validation: given.validation && checkSource('validation', given.validation),
    evalEvery,
    earlyStop: given.earlyStop && checkEarlyStop(given.earlyStop),
    probes: checkProbes(given.probes ?? []),
    sampleEvery: given.sampleEvery === undefined ? evalEvery : checkEvery('sampleEvery', given.sampleEvery),
    sampleTokens: checkInteger('sampleTokens', given.sampleTokens ?? 64, 1),
  }
}

type Files = 'checkpointDir' | 'checkpointEvery' | 'keep' | 'resume' | 'allowChanged' | 'logFile' | 'lossCurve'

function checkFiles(given: TrainerOptions): Pick<TrainerPlan, Files> {
  const { checkpointDir, resume = false, logFile, lossCurve, allowChanged = [] } = given
  const folder = checkpointDir === undefined ? undefined : checkPath('checkpointDir', checkpointDir)
  if (resume === true && folder === undefined) throw wrongValue('a path without checkpointDir', 'resume', resume)
  if (!Array.isArray(allowChanged)) throw wrongType('an array of names', 'allowChanged', allowChanged)
  return {
    checkpointDir: folder,
    checkpointEvery: checkEvery('checkpointEvery', given.checkpointEvery),
    keep: checkInteger('keep', given.keep ?? 3, 1),
    resume: typeof resume === 'boolean' ? resume : checkPath('resume', resume),
    allowChanged: allowChanged.map((name, i) => checkString(`allowChanged[${i}]`, name)),
    logFile: logFile === undefined ? undefined : checkPath('logFile', logFile),
    lossCurve: lossCurve === undefined ? undefined : checkCurvePath(lossCurve),
  }
}
