import type { Qwen3Config } from '../../types/config'
import type { NativeConfig, NativeMemoryBytes, NativeMemoryPlan } from '../../types/native'
import type { MemoryEstimate, MemoryOptions } from '../../types/options'
import { checkBoolean, checkDevice, checkFunction, checkInteger, checkOneOf, checkOptions } from '../check'
import { callNative } from '../errors'
import { native } from '../native'
import { defaultCacheDtype } from './kv-cache'
import { defaultStepChunkRows } from './packed-adamw'
import { parameterSpecs } from './parameter-specs'

export function toNativeConfig(config: Qwen3Config): NativeConfig {
  return {
    H: config.hiddenSize,
    L: config.numHiddenLayers,
    Q: config.numAttentionHeads,
    KV: config.numKeyValueHeads,
    D: config.headDim,
    F: config.intermediateSize,
    V: config.vocabSize,
    ropeBase: config.ropeTheta,
    eps: config.rmsNormEps,
    tied: config.tieWordEmbeddings,
  }
}

/** Bytes of a model in use: on its device by kind, and of what belongs to the model itself. */
export interface MemoryUse extends NativeMemoryBytes {
  /** The highest total since the device was opened or `resetMemoryPeak`. */
  peak: number
  /** This model's weights and scales, and the gradients kept for it. */
  model: { weights: number; scales: number; gradients: number }
  /** Of the whole GPU, all processes, as cudaMemGetInfo says; memory that this device keeps for reuse is not free. */
  gpuFree?: number
  gpuTotal?: number
}

/** Bytes that a model will need, by kind, from its configuration alone. */
export function estimateMemory(config: Qwen3Config, options: MemoryOptions): MemoryEstimate {
  const given = checkOptions(options, 'options', [
    'mode',
    'device',
    'tokens',
    'batch',
    'weights',
    'optimizerWeights',
    'moments',
    'trainable',
    'gradients',
    'trainStep',
    'recompute',
    'cacheTokens',
    'cacheDtype',
    'threads',
    'stepChunkRows',
  ])
  const training = checkOneOf('mode', given.mode, ['inference', 'training']) === 'training'
  const device = checkDevice(given.device ?? 'cpu')
  const tokens = checkInteger('tokens', given.tokens, 1)
  const trainable = checkFunction('trainable', given.trainable) ?? (() => true)
  const fused = checkBoolean('trainStep', given.trainStep ?? true)
  const plan: NativeMemoryPlan = {
    training,
    cuda: device !== 'cpu',
    tokens,
    batch: checkInteger('batch', given.batch ?? 1, 1),
    threads: given.threads === undefined ? 0 : checkInteger('threads', given.threads, 1),
    weights: checkOneOf('weights', given.weights ?? 'nvfp4', ['nvfp4', 'fp32', 'fp16', 'bf16', 'bnb4']),
    optimizerWeights: checkOneOf('optimizerWeights', given.optimizerWeights ?? 'nvfp4', [
      'nvfp4',
      'nvfp4+residual',
      'bf16',
      'fp32',
    ]),
    moments: checkOneOf('moments', given.moments ?? 'nvfp4', ['nvfp4', 'int8', 'bf16', 'fp32']),
    frozen: parameterSpecs(config).flatMap(({ name }) => (trainable(name) ? [] : [name])),
    gradients: fused ? '' : checkOneOf('gradients', given.gradients ?? 'fp32', ['fp32', 'bf16', 'nvfp4']),
    recompute: checkOneOf('recompute', given.recompute ?? 'all', ['all', 'cheap', 'none']),
    cacheTokens: checkInteger('cacheTokens', given.cacheTokens ?? (training ? 0 : tokens), 0),
    cacheDtype: checkOneOf('cacheDtype', given.cacheDtype ?? defaultCacheDtype(device), ['fp32', 'fp16', 'bf16']),
    stepChunkRows: checkInteger('stepChunkRows', given.stepChunkRows ?? defaultStepChunkRows(device), 1),
  }
  return callNative(() => native().estimateMemory(toNativeConfig(config), plan))
}
