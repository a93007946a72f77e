/** What is measured, and the limits that physics sets it (docs of the formulas beside each). */
import type { Qwen3Config, Recompute } from 'qwen3-nvfp4'
import { qwen3Of4b } from '../../test/support/qwen3-4b'

export interface Workload {
  config: Qwen3Config
  /** Tokens of a forward pass with the logits of the last one. */
  prefill: number[]
  /** Tokens before the first new one, and new ones. */
  decode: { prompt: number; tokens: number }[]
  train: { batch: number; tokens: number; recompute: Recompute }[]
}

/** Those of benchmarks/peers/hf.py. */
export const workloads: Record<string, Workload> = {
  '4b': {
    config: qwen3Of4b,
    prefill: [512, 2048, 8192],
    decode: [
      { prompt: 32, tokens: 480 },
      { prompt: 2048, tokens: 256 },
    ],
    // The least memory, the most speed, and a step that weights alone bound.
    train: [
      { batch: 1, tokens: 2048, recompute: 'all' },
      { batch: 4, tokens: 2048, recompute: 'cheap' },
      { batch: 1, tokens: 8, recompute: 'none' },
    ],
  },
  small: {
    config: {
      hiddenSize: 64,
      numHiddenLayers: 2,
      numAttentionHeads: 4,
      numKeyValueHeads: 2,
      headDim: 16,
      intermediateSize: 128,
      vocabSize: 512,
      ropeTheta: 1e4,
      rmsNormEps: 1e-6,
      tieWordEmbeddings: true,
    },
    prefill: [16, 32],
    decode: [
      { prompt: 8, tokens: 16 },
      { prompt: 32, tokens: 8 },
    ],
    train: [
      { batch: 2, tokens: 32, recompute: 'all' },
      { batch: 1, tokens: 8, recompute: 'none' },
    ],
  },
}

/** Of an H200: a copy between two places of its memory, cuBLASLt on bf16 8192³, and PCIe 5 x16. */
export interface Machine {
  bytesPerSecond: number
  flopsPerSecond: number
  linkBytesPerSecond: number
}

const NVFP4_BYTES = 9 / 16

function sizes({ config: c }: Workload) {
  const attention = c.numAttentionHeads * c.headDim
  const keys = c.numKeyValueHeads * c.headDim
  const layer = c.hiddenSize * (2 * attention + 2 * keys + 3 * c.intermediateSize)
  const linear = c.numHiddenLayers * layer
  const head = c.vocabSize * c.hiddenSize
  return {
    linear,
    head,
    parameters: linear + head,
    /** Multiplications and additions of causal attention for one token of T, forward. */
    attention: (T: number) => 2 * attention * c.numHiddenLayers * T,
    /** bf16 keys and values. */
    cacheBytes: 2 * keys * c.numHiddenLayers * 2,
  }
}

/** Every weight once a token, head included, and the keys and values of half the new tokens and all before. */
export function decodeLimit(workload: Workload, prompt: number, tokens: number, machine: Machine): number {
  const { parameters, cacheBytes } = sizes(workload)
  return machine.bytesPerSecond / (parameters * NVFP4_BYTES + cacheBytes * (prompt + tokens / 2))
}

/** Two operations a weight and token, the head for the last token only. */
export function prefillLimit(workload: Workload, T: number, machine: Machine): number {
  const { linear, head, attention } = sizes(workload)
  return machine.flopsPerSecond / (2 * linear + attention(T) + (2 * head) / T)
}

/**
 * Tokens a second of a step: six operations a weight and token and three times the forward pass's attention, and with
 * recompute 'all' a second forward pass of the layers; or, for few tokens, the traffic: weights read twice, weights and
 * both moments read and written.
 */
export function trainLimit(
  workload: Workload,
  { batch, tokens, recompute }: Workload['train'][number],
  machine: Machine,
): number {
  const { linear, parameters, attention } = sizes(workload)
  const again = recompute === 'all' ? 2 * linear + attention(tokens) : 0
  const computing = ((6 * parameters + 3 * attention(tokens) + again) * batch * tokens) / machine.flopsPerSecond
  const moving = ((2 + 6) * parameters * NVFP4_BYTES) / machine.bytesPerSecond
  return (batch * tokens) / Math.max(computing, moving)
}

/** Seconds in which the weights cross the link to the device. */
export function loadLimit(workload: Workload, machine: Machine): number {
  return (sizes(workload).parameters * NVFP4_BYTES) / machine.linkBytesPerSecond
}
