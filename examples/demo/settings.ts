/** Everything that one might want to turn: the model's shape, both training runs and what is asked at the end. */
import type { OptimizerOptions } from 'qwen3-nvfp4'

/** config.json of the tiny Qwen3; `vocab_size` is added once the tokenizer is made. */
export const modelConfig = {
  architectures: ['Qwen3ForCausalLM'],
  model_type: 'qwen3',
  hidden_size: 128,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 32,
  intermediate_size: 384,
  rope_theta: 10000,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: true,
  max_position_embeddings: 512,
}

/** Small enough that a word such as 你是誰 is several tokens, as it is in a real model. */
export const vocabSize = 512

/** Standard deviation of the random weights. */
export const initialStddev = 0.05

/** Every state in 4 bits: the weights are their NVFP4 codes and nothing else, and so are both moments. */
export const packed = { weights: 'nvfp4', moments: 'nvfp4', betas: [0.9, 0.95] } satisfies OptimizerOptions

export interface RunSettings {
  /** Most steps; tuning stops earlier once it has learned. */
  steps: number
  warmupSteps: number
  /** Largest learning rate; it rises over the warm-up and falls along a cosine to a twentieth. */
  lr: number
  maxGradNorm: number
  /** Sequences in a batch that are windows of running text; all its tokens have a loss. */
  textRows: number
  /** Sequences that are conversations; only the answers have a loss. */
  chatRows: number
  /** T, tokens in a sequence; at least as many as the longest turn. */
  tokens: number
}

export const pretraining: RunSettings = {
  steps: 900,
  warmupSteps: 30,
  lr: 4e-3,
  maxGradNorm: 1,
  textRows: 3,
  chatRows: 8,
  tokens: 144,
}

export const tuning: RunSettings & { replayShare: number; checkEvery: number; checksInARow: number } = {
  steps: 300,
  warmupSteps: 10,
  lr: 1e-3,
  maxGradNorm: 1,
  textRows: 2,
  chatRows: 8,
  tokens: 144,
  /** Part of the turns that repeat what the model said before; the others teach the new identity. */
  replayShare: 0.7,
  /** Every so many steps all prompts of identity.tsv are asked; */
  checkEvery: 20,
  /** tuning ends when every answer was right so many times in a row. */
  checksInARow: 3,
}

/** Who the tuned model is. */
export const identity = '我是 F# 之神'

/** Asked before and after tuning, each in a process that has only the saved file. */
export const probes = [
  { name: 'A', prompt: '你是誰', expected: 'identity', meaning: 'has the new identity' },
  { name: 'B', prompt: '談談UFO', expected: 'same', meaning: 'answers as before' },
  { name: 'C', prompt: '我是誰', expected: 'other', meaning: 'does not take the identity for the one who asks' },
] as const

/** Two turns on one cache. */
export const chatTurns = ['你是誰', '談談UFO']
