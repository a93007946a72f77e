/** Options of the public functions. Defaults are in the comments; numbers say their unit and range. */
import type { CheckpointWarning } from './checkpoint'
import type { Qwen3Config } from './config'
import type { CacheDtype, Compute, GradientStorage, Moments, OptimizerWeights, Recompute } from './native'
import type { Nibbles, Storage, WeightStorage } from './tensor'

export type { CacheDtype, Compute, GradientStorage, Moments, OptimizerWeights, Recompute }

export interface DeviceOptions {
  /** Where to compute: 'cpu', or 'cuda:N'. Never replaced silently by another. Default: 'cpu'. */
  device?: string
  /** Threads of the CPU device, 1 or more. Default: the cores this process may use. Results do not depend on it. */
  threads?: number
}

export interface ComputeOptions extends DeviceOptions {
  /**
   * What forward passes multiply NVFP4 weights with: activations as they are, or with 'w4a4' rounded to NVFP4 too, on the
   * FP4 tensor cores of Blackwell, where more than 8 tokens are computed at once. That is off by about 10 % (RMS) in
   * every product, and it has not run on such hardware yet. A device below compute capability 10.0 is refused
   * (UNSUPPORTED), and so are weights [N, K] with N no multiple of 16 or K of 32. `loss`, `trainStep` and passes with
   * `gradient` compute as 'w4a16' always. Default: 'w4a16'.
   */
  compute?: Compute
}

export interface LoadOptions extends ComputeOptions {
  /** Directory with config.json when it is not beside the .dat file. Default: the directory of the file. */
  modelDir?: string
  /** The configuration, when there is no config.json. Default: read from modelDir. */
  config?: Qwen3Config
  /**
   * How matrices are kept. Default: as stored for a .dat file and for NVFP4 and bitsandbytes safetensors, 'nvfp4' for
   * dense safetensors.
   */
  weights?: Storage
  /**
   * With weights 'nvfp4': whether an embedding that the file stores dense is quantised too. Default: 'as-stored' for a
   * .dat file and NVFP4 safetensors, 'nvfp4' for dense safetensors.
   */
  embedding?: 'as-stored' | 'nvfp4'
  /** Levels of NVFP4 scales of what is quantised here. Default: 'two-level'. */
  scales?: 'two-level' | 'one-level'
  /** How block scales are chosen of what is quantised here: 'four-over-six' has about 8 % less error. Default: 'amax'. */
  scaleRule?: 'amax' | 'four-over-six'
  /**
   * Which nibble has the first element, of the NF4 and FP4 of a .dat that does not say so: one without the state of
   * bitsandbytes, which writes it high. Default: 'high-first'.
   */
  nibbles?: Nibbles
  /**
   * Which tensors that the model does not use are refused: all, or none. saveDat keeps those of a .dat. Default: those of its
   * layers, embedding, norm and head, without which it would be another model; of others onWarning tells.
   */
  strict?: boolean
  /** Stops the load; the promise rejects with signal.reason. */
  signal?: AbortSignal
  /** Called with bytes read so far and in all, at most a few hundred times. */
  onProgress?: (progress: { doneBytes: number; totalBytes: number }) => void
  /** Called with what the checkpoint has and the model does not use. Default: process.emitWarning. */
  onWarning?: (warning: CheckpointWarning) => void
}

export interface InitializeOptions extends ComputeOptions {
  /** Seed of the random weights, 0 to 2^64 − 1. The same seed gives the same bytes everywhere. Default: 0. */
  seed?: number | bigint
  /** Standard deviation of embeddings and projections, above 0. Norms are 1. Default: 0.02. */
  stddev?: number
  /** How matrices are kept. Default: 'nvfp4'. */
  weights?: Storage
  /** Levels of NVFP4 scales: 'two-level', or 'one-level' as in a prior-layout .dat. Default: 'two-level'. */
  scales?: 'two-level' | 'one-level'
  signal?: AbortSignal
}

/** Token ids: one sequence, or a batch of sequences of equal length. */
export type TokenIds = Int32Array | readonly number[] | readonly (Int32Array | readonly number[])[]

export interface ForwardOptions {
  /** Which positions get logits. Default: 'last'. With `gradient`: 'all'. */
  logits?: 'all' | 'last' | 'none'
  /** Also return the input of every layer and the final normalised state. Default: false. */
  hiddenStates?: boolean
  /** 1 for a token, 0 for padding that nobody attends to: [B, T] as bytes or nested arrays. Default: all 1. */
  attentionMask?: Uint8Array | readonly number[] | readonly (readonly number[])[]
  /**
   * Samples packed into one sequence: [B, T] as an Int32Array or nested arrays, for each token the number of its sample,
   * where a run of equal numbers is one sample. A token attends to its own sample only, and positions begin anew at
   * each, so that a sample has the results it has alone. May be given with `attentionMask`. Default: one sample a sequence.
   */
  segments?: Int32Array | readonly number[] | readonly (readonly number[])[]
  /** Keep what `backward(dLogits)` needs. Default: false. */
  gradient?: boolean
  /** What the backward pass computes again to save memory; see LossOptions. Default: 'all'. */
  recompute?: Recompute
  /** Decode every weight to fp32 and multiply with plain loops in double: slow, the truth. Default: false. */
  reference?: boolean
  signal?: AbortSignal
}

export interface CachedForwardOptions {
  /** Which positions get logits. Default: 'last'. */
  logits?: 'all' | 'last' | 'none'
  /** Also return the hidden states of these tokens. Default: false. */
  hiddenStates?: boolean
  signal?: AbortSignal
}

export interface KvCacheOptions {
  /** Most positions it may hold, 1 or more. Pages of 64 positions are allocated as needed. */
  maxTokens: number
  /** Element type of keys and values. Default: 'fp32' on the CPU; a GPU has 'bf16' alone and refuses others. */
  dtype?: CacheDtype
}

export interface LossOptions {
  /**
   * false: labels are the ids themselves, position t predicts labels[t + 1], and the last token of a sequence or segment
   * predicts nothing; true: position t predicts labels[t]. Default: false.
   */
  shifted?: boolean
  /** 'all' keeps layer inputs only; 'cheap' recomputes norms and SwiGLU; 'none' keeps everything. Default: 'all'. */
  recompute?: Recompute
  attentionMask?: ForwardOptions['attentionMask']
  segments?: ForwardOptions['segments']
  signal?: AbortSignal
}

export interface HiddenLossOptions {
  /** As in LossOptions. Default: 'all'. */
  recompute?: Recompute
  /** As in ForwardOptions; padding does not count. Default: all 1. */
  attentionMask?: ForwardOptions['attentionMask']
  segments?: ForwardOptions['segments']
  signal?: AbortSignal
}

export interface BackwardOptions {
  /** How gradients are kept until a step. Default: that of the last optimizer made for the model, else 'fp32'. */
  gradients?: GradientStorage
  /**
   * Factor of the loss. Micro-batches give the gradients of their labels' mean when each has the share of labels that count
   * in it: `scale: loss.tokens / total`, with `total` counted over all of them. Default: 1.
   */
  scale?: number
  signal?: AbortSignal
}

export interface OptimizerOptions {
  /** Learning rate, 0 or more; step() may override it. Default: 1e-4. */
  lr?: number
  /** Decay rates of the moments, each in [0, 1). Default: [0.9, 0.999]. */
  betas?: readonly [number, number]
  /** Added to the root of the second moment, above 0. Default: 1e-8. */
  eps?: number
  /** Decoupled weight decay, 0 or more. Default: 0. */
  weightDecay?: number
  /** Whether decay applies to norm vectors too. Default: true. */
  decayNorms?: boolean
  /**
   * What stands behind a weight that the model stores in NVFP4: nothing more ('nvfp4'), a second NVFP4 tensor with what
   * the codes miss, or a master copy. Weights that the model stores dense are updated in place. Default: 'nvfp4'.
   */
  weights?: OptimizerWeights
  /** What holds both moments. `state` is another name for it. Default: 'nvfp4'. */
  moments?: Moments
  state?: Moments
  /** How backward() keeps gradients; trainStep keeps none. Default: 'fp32'. */
  gradients?: GradientStorage
  /** Sum more than four micro-batches in NVFP4, whose error grows with each. Default: false. */
  allowManyMicroBatches?: boolean
  /**
   * Rows whose gradient exists at once, 1 or more: less scratch when small, the same results.
   * Default: 1024, on CUDA 12288.
   */
  stepChunkRows?: number
  /** Seed of stochastic rounding, 0 to 2^64 − 1. Default: 0. */
  seed?: number | bigint
  /** With 'nvfp4+residual': whether the forward pass uses the residual too. Default: true. */
  residualInForward?: boolean
  /**
   * Which parameters train. Steps and backward passes compute, and keep activations, no further down than their lowest
   * layer. Default: all.
   */
  trainable?: (name: string) => boolean
}

export interface StepOptions {
  /** Learning rate of this step. Default: the optimizer's. */
  lr?: number
  /** Scales gradients so that their global norm is at most this, above 0. Default: no clipping. */
  maxGradNorm?: number
  /**
   * Takes no step when the gradients' global norm is above this, a number above 0: nothing is touched, no step is counted,
   * the gradients are consumed unless kept, and `skipped` says so. Default: never.
   */
  skipAboveNorm?: number
  /** Keep the gradients instead of consuming them, for another step or to read them. Default: false. */
  keepGradients?: boolean
  signal?: AbortSignal
}

export interface TrainBatch {
  ids: TokenIds
  /** One label a token; −100 has no loss. */
  labels: TokenIds
  attentionMask?: ForwardOptions['attentionMask']
  segments?: ForwardOptions['segments']
  /** As in LossOptions. Default: false. */
  shifted?: boolean
}

export interface TrainStepOptions {
  /** Learning rate of this step. Default: the optimizer's. */
  lr?: number
  /**
   * Clips by the norm of the previous step's gradients, as this step's is known only at its end. The first step makes its
   * gradients twice and is clipped by their own norm. Default: no clipping.
   */
  maxGradNorm?: number
  /**
   * Takes no step when the loss, which is known before the backward pass, is above this, a number above 0: nothing is touched, no
   * step is counted, and `skipped` says so. Default: never.
   */
  skipAboveLoss?: number
  /** As in LossOptions. Default: 'all'. */
  recompute?: Recompute
  /** Counts until the first update; from then on the step runs to its end. */
  signal?: AbortSignal
}

/** What a step did. */
export interface StepStats {
  /** Number of updates made so far, this one included. */
  step: number
  lr: number
  /** Global norm of the gradients before clipping; 0 where `skipAboveLoss` ended the step before there were any. */
  gradNorm: number
  /** What clipping multiplied the gradients with; 1 without. */
  clipScale: number
  /** Root mean square of the Adam direction: about 0.2 to 1; growth means noise in the second moment. */
  updateRms: number
  /** Fraction of NVFP4 weight codes that the step changed. */
  changedCodes: number
  /** Whether `skipAboveNorm` or `skipAboveLoss` let no update happen. */
  skipped: boolean
}

export interface TrainStepStats extends StepStats {
  /** Mean loss over counted labels, before the update. */
  loss: number
  /** Labels that counted. */
  tokens: number
}

export interface GenerateOptions {
  /** Most new tokens, 1 or more. Default: 256, or what the cache has room for. */
  maxTokens?: number
  /** 0 is greedy. Default: 0. */
  temperature?: number
  /** Keep the k likeliest, 0 is off. Default: 0. */
  topK?: number
  /** Keep the smallest set that reaches this probability, in (0, 1]; 1 is off. Default: 1. */
  topP?: number
  /** Drop tokens below minP times the largest probability, in [0, 1). Default: 0. */
  minP?: number
  /** Divides positive and multiplies negative logits of ids already seen, above 0; 1 is off. Default: 1. */
  repetitionPenalty?: number
  /** Seed of the draws, 0 to 2^64 − 1. Default: 0. */
  seed?: number | bigint
  /** Ids that end generation. Default: the configuration's eosTokenIds. */
  stopTokens?: readonly number[]
  /** How many likeliest tokens to report with each one, 0 or more. Default: 0. */
  topLogprobs?: number
  /** This many equal ids in a row is an error DEGENERATE_OUTPUT; 0 is off. Default: 64. */
  maxRepeats?: number
  /** The conversation so far; keeps prompt and answer for the next turn. Default: a temporary one. */
  cache?: unknown
  /** Ids before the prompt that the repetition penalty also sees, such as those already in the cache. Default: none. */
  history?: Int32Array | readonly number[]
  signal?: AbortSignal
}

export type FinishReason = 'max-tokens' | 'stop-token' | 'cache-full'

export interface GeneratedToken {
  id: number
  /** Log-probability under the model, before penalty and temperature. */
  logprob: number
  /** Likeliest first, with `topLogprobs`. */
  topLogprobs?: { id: number; logprob: number }[]
  /** 0 for the first new token. */
  index: number
  /** Why generation ended; on the last token only. */
  finishReason?: FinishReason
}

export interface LinearSteOptions {
  /** N, rows of a weight given as values. */
  rows?: number
  /** K, columns of the weight; a multiple of 16. */
  cols?: number
  /** Levels of the scales it is quantised with. Default: 'two-level'. */
  scales?: 'two-level' | 'one-level'
  /** How block scales are chosen. Default: 'amax'. */
  scaleRule?: 'amax' | 'four-over-six'
  signal?: AbortSignal
}

export interface MemoryOptions {
  mode: 'inference' | 'training'
  /** 'cpu', or 'cuda:N' for any GPU; it need not be there. Default: 'cpu'. */
  device?: string
  /** T, tokens a sequence, 1 or more. */
  tokens: number
  /** B, sequences at once, 1 or more. Default: 1. */
  batch?: number
  /** How matrices are kept; with 'bnb4' embedding and head are bf16. Default: 'nvfp4'. */
  weights?: WeightStorage
  /** `weights` of OptimizerOptions. Default: 'nvfp4'. */
  optimizerWeights?: OptimizerOptions['weights']
  /** As in OptimizerOptions. Default: 'nvfp4'. */
  moments?: OptimizerOptions['moments']
  /** As in OptimizerOptions: nothing is kept for, and below, what does not train. Default: all. */
  trainable?: OptimizerOptions['trainable']
  /** Stored gradients, when backward() and step() are used. Default: 'fp32'. */
  gradients?: GradientStorage
  /** Whether trainStep is used, which stores no gradients. Default: true. */
  trainStep?: boolean
  recompute?: Recompute
  /** Positions in the key/value cache, 0 or more. Default: tokens in inference, 0 in training. */
  cacheTokens?: number
  /** Default: that of the device's caches, 'fp32' on the CPU and 'bf16' on a GPU. */
  cacheDtype?: CacheDtype
  /** Threads of the CPU device. Default: the cores this process may use. */
  threads?: number
  /** As in OptimizerOptions. Default: that of the device. */
  stepChunkRows?: number
}

/** Bytes by kind: their total is what `memory().peak` comes to, within 5 %. A CUDA context takes 0.5 GiB of its GPU besides. */
export interface MemoryEstimate {
  weights: number
  scales: number
  moments: number
  gradients: number
  activations: number
  cache: number
  scratch: number
  total: number
}
