/** The shape of Qwen3-4B. */
import type { Qwen3Config } from 'qwen3-nvfp4'

export const qwen3Of4b: Qwen3Config = {
  hiddenSize: 2560,
  numHiddenLayers: 36,
  numAttentionHeads: 32,
  numKeyValueHeads: 8,
  headDim: 128,
  intermediateSize: 9728,
  vocabSize: 151936,
  ropeTheta: 5e6,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
}
