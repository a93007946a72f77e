/** A tiny random model, and values that are the same at every run. */
import type { InitializeOptions, Qwen3Config } from 'qwen3-nvfp4'
import { Qwen3Nvfp4Model } from 'qwen3-nvfp4'

export { expectClose } from './expect-close'

export const tinyConfig: Qwen3Config = {
  hiddenSize: 32,
  numHiddenLayers: 2,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 16,
  intermediateSize: 64,
  vocabSize: 96,
  ropeTheta: 10_000,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
}

/** Large weights, so that logits differ clearly from token to token. */
export function tinyModel(options: InitializeOptions = {}, config = tinyConfig): Promise<Qwen3Nvfp4Model> {
  return Qwen3Nvfp4Model.initialize(config, { seed: 7, stddev: 0.15, threads: 2, ...options })
}

/** A model whose forward pass of `slowIds` takes long enough (about half a second) to act during it. */
export const slowConfig: Qwen3Config = { ...tinyConfig, hiddenSize: 256, intermediateSize: 1024, numHiddenLayers: 4 }
export const slowIds = Array.from({ length: 768 }, (_, i) => (i * 37 + 11) % 96)

export const idsOf = (count: number, seed = 1) =>
  Array.from({ length: count }, (_, i) => ((((i + seed) * 2654435761) % 2 ** 32) % 96) | 0)
