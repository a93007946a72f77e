/** Small dense Hugging Face checkpoints with values like those of trained models. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DTypeName, Qwen3Config, SafetensorsTensor } from 'qwen3-nvfp4'
import { toConfigJson, writeSafetensors } from 'qwen3-nvfp4'
import { gaussian } from './random'

/** Two layers whose every matrix is whole blocks, and rows of which two stack to no multiple of 16. */
export const denseConfig: Qwen3Config = {
  hiddenSize: 48,
  numHiddenLayers: 2,
  numAttentionHeads: 3,
  numKeyValueHeads: 1,
  headDim: 16,
  intermediateSize: 80,
  vocabSize: 101,
  ropeTheta: 1e6,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
  bosTokenId: 1,
  eosTokenIds: [2],
}

/** Names and shapes of a configuration, written out once more. */
export function shapesOf(config: Qwen3Config): Map<string, number[]> {
  const { hiddenSize: H, headDim: D, intermediateSize: F, vocabSize: V } = config
  const Q = config.numAttentionHeads * D
  const KV = config.numKeyValueHeads * D
  const shapes = new Map<string, number[]>([['model.embed_tokens.weight', [V, H]]])
  for (let i = 0; i < config.numHiddenLayers; i++) {
    const set = (name: string, ...shape: number[]) => shapes.set(`model.layers.${i}.${name}.weight`, shape)
    set('self_attn.q_proj', Q, H)
    set('self_attn.k_proj', KV, H)
    set('self_attn.v_proj', KV, H)
    set('self_attn.o_proj', H, Q)
    set('self_attn.q_norm', D)
    set('self_attn.k_norm', D)
    set('mlp.gate_proj', F, H)
    set('mlp.up_proj', F, H)
    set('mlp.down_proj', H, F)
    set('input_layernorm', H)
    set('post_attention_layernorm', H)
  }
  shapes.set('model.norm.weight', [H])
  if (!config.tieWordEmbeddings) shapes.set('lm_head.weight', [V, H])
  return shapes
}

const word = new Uint32Array(1)
const float = new Float32Array(word.buffer)

/** Bits of a value cut to the upper half of an f32: what a bf16 can hold. */
export function bf16Bits(values: Float32Array): Uint16Array {
  return Uint16Array.from(values, (value) => {
    float[0] = value
    return word[0]! >>> 16
  })
}

export interface DenseOptions {
  config?: Qwen3Config
  dtype?: 'bfloat16' | 'float32'
  /** Standard deviation of the matrices. */
  sigma?: number
}

export function denseTensors({ config = denseConfig, dtype = 'bfloat16', sigma = 0.05 }: DenseOptions = {}) {
  const tensors = new Map<string, SafetensorsTensor>()
  for (const [i, [name, shape]] of [...shapesOf(config)].entries()) {
    const count = shape.reduce((a, b) => a * b, 1)
    // q, k and v differ in size, so that a global scale of their own would differ too.
    const values = gaussian(count, shape.length === 1 ? 1 : sigma * (1 + (i % 5)), i + 1)
    tensors.set(name, { dtype: dtype as DTypeName, shape, data: dtype === 'float32' ? values : bf16Bits(values) })
  }
  return tensors
}

export async function writeDense(folder: string, options: DenseOptions = {}): Promise<string> {
  mkdirSync(folder, { recursive: true })
  const { config = denseConfig } = options
  await writeSafetensors(join(folder, 'model.safetensors'), denseTensors(options), { metadata: { format: 'pt' } })
  const json = { ...toConfigJson(config), initializer_range: 0.02, max_window_layers: 28 }
  writeFileSync(join(folder, 'config.json'), JSON.stringify(json))
  writeFileSync(join(folder, 'generation_config.json'), JSON.stringify({ eos_token_id: [2, 3], temperature: 0.6 }))
  writeFileSync(join(folder, 'tokenizer.json'), '{"made": "up"}')
  return folder
}
