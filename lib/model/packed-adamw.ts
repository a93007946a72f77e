import type { NativeGradientOptions, NativeModel, NativeOptimizer, NativeOptimizerOptions } from '../../types/native'
import type {
  OptimizerOptions,
  StepOptions,
  StepStats,
  TrainBatch,
  TrainStepOptions,
  TrainStepStats,
} from '../../types/options'
import {
  checkBoolean,
  checkFloat32,
  checkFunction,
  checkInteger,
  checkNumber,
  checkOneOf,
  checkOptions,
  checkPath,
  checkSeed,
  checkSignal,
  checkString,
  wrongShape,
  wrongType,
  wrongValue,
} from '../check'
import { awaitNative, callNative } from '../errors'
import { native } from '../native'
import { runNative } from '../native-call'
import type { Parameter } from './parameter'
import { checkIds, checkLabels, checkMask, checkSegments } from './token-batch'

const optionNames = [
  'lr',
  'betas',
  'eps',
  'weightDecay',
  'decayNorms',
  'weights',
  'moments',
  'state',
  'gradients',
  'allowManyMicroBatches',
  'stepChunkRows',
  'seed',
  'residualInForward',
  'trainable',
] as const

const momentForms = ['nvfp4', 'int8', 'bf16', 'fp32'] as const

/** On a GPU a matrix of a layer at once: one launch is cheaper than ten. */
export const defaultStepChunkRows = (device: string): number => (device === 'cpu' ? 1024 : 12_288)

/** What an optimizer is made of, checked. */
export interface OptimizerPlan {
  lr: number
  native: NativeOptimizerOptions
  gradients: NativeGradientOptions
}

export function checkOptimizerOptions(
  options: OptimizerOptions | undefined,
  parameters: readonly Parameter[],
  device: string,
): OptimizerPlan {
  const given = checkOptions(options, 'options', optionNames)
  const { betas = [0.9, 0.999], seed: givenSeed = 0, trainable = () => true } = given
  if (!Array.isArray(betas)) throw wrongType('two numbers', 'betas', betas)
  if (betas.length !== 2) throw wrongShape('two numbers', 'betas', `${betas.length}`)
  checkFunction('trainable', trainable)
  if (given.moments !== undefined && given.state !== undefined && given.moments !== given.state) {
    throw new RangeError(`Expected state to equal moments '${given.moments}' but received '${given.state}'`)
  }
  const seed = checkSeed('seed', givenSeed)
  const trained = parameters.filter(({ name }) => trainable(name)).map(({ name }) => name)
  if (trained.length === 0) throw new RangeError('Expected at least one parameter for trainable but received none')
  return {
    lr: checkNumber('lr', given.lr ?? 1e-4, { min: 0 }),
    gradients: {
      format: checkOneOf('gradients', given.gradients ?? 'fp32', ['fp32', 'bf16', 'nvfp4']),
      allowMany: checkBoolean('allowManyMicroBatches', given.allowManyMicroBatches ?? false),
      seed,
    },
    native: {
      beta1: checkNumber('betas[0]', betas[0], { min: 0, below: 1 }),
      beta2: checkNumber('betas[1]', betas[1], { min: 0, below: 1 }),
      eps: checkNumber('eps', given.eps ?? 1e-8, { above: 0 }),
      weightDecay: checkNumber('weightDecay', given.weightDecay ?? 0, { min: 0 }),
      decayNorms: checkBoolean('decayNorms', given.decayNorms ?? true),
      weights: checkOneOf('weights', given.weights ?? 'nvfp4', ['nvfp4', 'nvfp4+residual', 'bf16', 'fp32']),
      moments: checkOneOf('moments', given.moments ?? given.state ?? 'nvfp4', momentForms),
      stepChunkRows: checkInteger('stepChunkRows', given.stepChunkRows ?? defaultStepChunkRows(device), 1),
      residualInForward: checkBoolean('residualInForward', given.residualInForward ?? true),
      seed,
      trainable: trained,
    },
  }
}

/** Moments of one parameter, divided by 1 − βᵗ already. */
export interface AdamMoments {
  m: Float32Array
  v: Float32Array
  /** t: updates that the parameter has had. */
  updates: number
}

/** A number above 0, or 0 for none. */
const checkThreshold = (name: string, value: number | undefined): number =>
  value === undefined ? 0 : checkNumber(name, value, { above: 0 })

/** AdamW whose state is packed, by default to 4 bits a value. Made by `model.createOptimizer`. */
export class PackedAdamW {
  /** Learning rate of steps that name none; may be changed between steps. */
  lr: number
  /** @internal */
  readonly plan: OptimizerPlan
  readonly #native: NativeOptimizer
  readonly #vocabSize: number
  readonly #created: Promise<void>

  /** @internal */
  constructor(model: NativeModel, plan: OptimizerPlan, vocabSize: number) {
    this.lr = plan.lr
    this.plan = plan
    this.#vocabSize = vocabSize
    this.#native = callNative(() => new (native().Optimizer)(model, plan.native))
    this.#created = awaitNative(() => this.#native.create())
    // Whoever awaits the first call gets it; nobody has to.
    this.#created.catch(() => {})
  }

  /** Updates the weights with the gradients of earlier backward passes, and consumes these. */
  async step(options?: StepOptions): Promise<StepStats> {
    const given = checkOptions(options, 'options', ['lr', 'maxGradNorm', 'skipAboveNorm', 'keepGradients', 'signal'])
    const args = {
      ...this.#checkStep(given),
      skipAboveNorm: checkThreshold('skipAboveNorm', given.skipAboveNorm),
      keepGradients: checkBoolean('keepGradients', given.keepGradients ?? false),
    }
    await this.#created
    return runNative(checkSignal(given.signal), (cancel) => this.#native.step(args, cancel))
  }

  /** One whole step: loss, backward pass and update in one job, layer by layer, so that no gradient is ever stored. */
  async trainStep(batch: TrainBatch, options?: TrainStepOptions): Promise<TrainStepStats> {
    const {
      labels,
      attentionMask,
      segments,
      shifted = false,
      ids,
    } = checkOptions(batch, 'batch', ['ids', 'labels', 'attentionMask', 'segments', 'shifted'])
    const given = checkOptions(options, 'options', ['lr', 'maxGradNorm', 'skipAboveLoss', 'recompute', 'signal'])
    const tokens = checkIds(ids, this.#vocabSize)
    const args = { ...this.#checkStep(given), skipAboveLoss: checkThreshold('skipAboveLoss', given.skipAboveLoss) }
    const pass = {
      ...tokens,
      labels: checkLabels(labels, tokens, this.#vocabSize),
      mask: checkMask(attentionMask, tokens),
      starts: checkSegments(segments, tokens),
      shifted: checkBoolean('shifted', shifted),
      recompute: checkOneOf('recompute', given.recompute ?? 'all', ['all', 'cheap', 'none']),
    }
    await this.#created
    return runNative(checkSignal(given.signal), (cancel) => this.#native.trainStep(pass, args, cancel))
  }

  /** Drops the gradients of earlier backward passes. */
  async zeroGrad(): Promise<void> {
    await this.#created
    await awaitNative(() => this.#native.zeroGradients())
  }

  /** Writes moments, masters, residuals and counters to one file, beside it first and then renamed. */
  async save(path: string | URL): Promise<void> {
    const file = checkPath('path', path)
    await this.#created
    await awaitNative(() => this.#native.save(file))
  }

  /**
   * Goes on where a saved optimizer was; resolves to the number of steps it had taken. With the model that was saved
   * beside it, training continues bit for bit. Another model's state is refused (STATE_MISMATCH).
   */
  async load(path: string | URL): Promise<number> {
    const file = checkPath('path', path)
    await this.#created
    return awaitNative(() => this.#native.load(file))
  }

  /** The bias-corrected moments of a parameter that trains, row-major, and how many updates it has had. */
  async readMoments(name: string): Promise<AdamMoments> {
    checkString('name', name)
    await this.#created
    const { moments, updates } = await awaitNative(() => this.#native.readMoments(name))
    const count = moments.length / 2
    return { m: moments.subarray(0, count), v: moments.subarray(count), updates }
  }

  /**
   * Sets them: exactly with 'fp32' moments, rounded to nearest with 'bf16', else rounded as a step rounds them. The next
   * step is not clipped by the norm of one before it.
   */
  async writeMoments(name: string, { m, v, updates }: AdamMoments): Promise<void> {
    checkString('name', name)
    checkFloat32('m', m, [m?.length])
    checkFloat32('v', v, [m.length])
    if (!m.every(Number.isFinite)) throw wrongValue('finite numbers', 'm', m)
    if (!v.every((x) => x >= 0 && x < Infinity)) throw wrongValue('finite numbers of at least 0', 'v', v)
    checkInteger('updates', updates, 0)
    await this.#created
    await awaitNative(() => this.#native.writeMoments(name, m, v, updates))
  }

  /** Bytes of moments, masters and residuals. */
  async stateBytes(): Promise<number> {
    await this.#created
    return awaitNative(() => this.#native.stateBytes())
  }

  /** Frees the state; resolves when it is free. Again is harmless. */
  async dispose(): Promise<void> {
    await awaitNative(() => this.#native.dispose())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  #checkStep({ lr, maxGradNorm }: { lr?: number; maxGradNorm?: number }) {
    return {
      lr: checkNumber('lr', lr ?? this.lr, { min: 0 }),
      maxGradNorm: checkThreshold('maxGradNorm', maxGradNorm),
    }
  }
}
