/** What is trained: the model's shape, both stages, and what the optimizer keeps. */
import type { OptimizerOptions } from 'qwen3-nvfp4'

export interface Stage {
  steps: number
  warmupSteps: number
  lr: number
  /** The rate at the end. */
  minLr: number
  /** Rows of a batch, each of packed conversations. */
  batchSize: number
  maxTokens: number
  weightDecay: number
  /** Ends the stage where it is, reported. */
  limitSeconds: number
}

export interface Size {
  /** config.json but for the vocabulary. */
  model: { hidden_size: number; num_hidden_layers: number; num_attention_heads: number } & Record<string, number>
  /** Whether the model has the tokens of its texts only, not the tokenizer's whole vocabulary. */
  cutVocabulary: boolean
  stddev: number
  scratch: Stage
  tuning: Stage
}

export const sizes: Record<string, Size> = {
  '71m': {
    model: {
      hidden_size: 384,
      num_hidden_layers: 8,
      num_attention_heads: 6,
      num_key_value_heads: 2,
      head_dim: 64,
      intermediate_size: 1024,
    },
    cutVocabulary: false,
    stddev: 0.03,
    scratch: {
      steps: 900,
      warmupSteps: 40,
      lr: 1.5e-3,
      minLr: 4e-5,
      batchSize: 8,
      maxTokens: 512,
      weightDecay: 0,
      limitSeconds: 40,
    },
    tuning: {
      steps: 1200,
      warmupSteps: 20,
      lr: 8e-4,
      minLr: 2e-5,
      batchSize: 8,
      maxTokens: 512,
      weightDecay: 0.1,
      limitSeconds: 70,
    },
  },
  tiny: {
    model: {
      hidden_size: 192,
      num_hidden_layers: 6,
      num_attention_heads: 6,
      num_key_value_heads: 2,
      head_dim: 32,
      intermediate_size: 512,
    },
    cutVocabulary: true,
    stddev: 0.04,
    scratch: {
      steps: 900,
      warmupSteps: 40,
      lr: 3e-3,
      minLr: 1e-4,
      batchSize: 4,
      maxTokens: 256,
      weightDecay: 0,
      limitSeconds: 3600,
    },
    tuning: {
      steps: 700,
      warmupSteps: 20,
      lr: 1.5e-3,
      minLr: 5e-5,
      batchSize: 8,
      maxTokens: 256,
      weightDecay: 0,
      limitSeconds: 3600,
    },
  },
}

export interface Arm {
  title: string
  optimizer: Pick<OptimizerOptions, 'weights' | 'moments' | 'betas'>
}

export const arms: Record<string, Arm> = {
  nvfp4: {
    title: 'everything NVFP4',
    optimizer: { weights: 'nvfp4', moments: 'nvfp4', betas: [0.9, 0.95] },
  },
  residual: {
    title: 'NVFP4 + residual, NVFP4 moments',
    optimizer: { weights: 'nvfp4+residual', moments: 'nvfp4', betas: [0.9, 0.95] },
  },
}

/** Shares of what is tuned on: the identity, who the user is, and what must stay as it was. */
export const mixture = { identitySets: 1, identityPhrasings: 5, userPhrasings: 6, topicPhrasings: 4, mixedSets: 2 }

/** Sentences of each group to tune on. */
export const phrasingCount = 20_000

/** How often the loss of the sentences for validation is taken during tuning. */
export const validations = 8

/** Lines of the mixed sets that are asked, and the most tokens of an answer. */
export const askedLines = 100
export const answerTokens = 48

/** What both stages and all questions get. */
export interface Plan {
  folder: string
  /** Folder of tokenizer.json, and that of the sets. */
  tokenizer: string
  sets: string
  device: string
  seed: number
  size: string
  scratch: Stage
  tuning: Stage
  mixture: typeof mixture
}
