/** Configurations of the published dense Qwen3 models, and of a tiny one, for models of random weights. */
import type { Qwen3Config } from 'qwen3-nvfp4'

function config(
  hiddenSize: number,
  numHiddenLayers: number,
  numAttentionHeads: number,
  intermediateSize: number,
  tieWordEmbeddings: boolean,
): Qwen3Config {
  return {
    hiddenSize,
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads: 8,
    headDim: 128,
    intermediateSize,
    vocabSize: 151_936,
    ropeTheta: 1_000_000,
    rmsNormEps: 1e-6,
    tieWordEmbeddings,
    eosTokenIds: [151_645, 151_643],
  }
}

export const presets: Readonly<Record<string, Qwen3Config>> = {
  tiny: {
    hiddenSize: 128,
    numHiddenLayers: 4,
    numAttentionHeads: 4,
    numKeyValueHeads: 2,
    headDim: 32,
    intermediateSize: 384,
    vocabSize: 2048,
    ropeTheta: 10_000,
    rmsNormEps: 1e-6,
    tieWordEmbeddings: true,
  },
  '0.6b': config(1024, 28, 16, 3072, true),
  '1.7b': config(2048, 28, 16, 6144, true),
  '4b': config(2560, 36, 32, 9728, true),
  '8b': config(4096, 36, 32, 12_288, false),
  '14b': config(5120, 40, 40, 17_408, false),
  '32b': config(5120, 64, 64, 25_600, false),
}
