import type { Qwen3Config } from 'qwen3-nvfp4'

/** A model that every runtime loads in no time. */
export const smallConfig = {
  hiddenSize: 256,
  numHiddenLayers: 4,
  numAttentionHeads: 8,
  numKeyValueHeads: 2,
  headDim: 64,
  intermediateSize: 768,
  ropeTheta: 1e6,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: false,
  maxPositionEmbeddings: 4096,
} satisfies Omit<Qwen3Config, 'vocabSize'>
