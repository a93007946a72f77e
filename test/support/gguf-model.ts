/** Small Qwen3 models as GGUF files, and the values of their tensors by ggml's definitions, written without the library. */
import type { Qwen3Config } from 'qwen3-nvfp4'
import type { GgufParts, Tensor, Value } from './gguf'
import { uniformSource } from './random'
import { tinyTokenizerConfig } from './tiny-tokenizer'

export const ggufConfig: Qwen3Config = {
  hiddenSize: 64,
  numHiddenLayers: 2,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 32,
  intermediateSize: 128,
  vocabSize: 96,
  ropeTheta: 1e6,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
  maxPositionEmbeddings: 4096,
  bosTokenId: 1,
  eosTokenIds: [2, 3],
}

export type Kind = 'f32' | 'f16' | 'bf16' | 'q8_0' | 'nvfp4'
const ids = { f32: 0, f16: 1, bf16: 30, q8_0: 8, nvfp4: 40 }

/** What llama.cpp asks of a Qwen3. */
export function ggufMetadata(config = ggufConfig): [string, Value][] {
  return [
    ['general.architecture', ['string', 'qwen3']],
    ['general.name', ['string', 'tiny']],
    ['qwen3.block_count', ['u32', config.numHiddenLayers]],
    ['qwen3.context_length', ['u32', config.maxPositionEmbeddings!]],
    ['qwen3.embedding_length', ['u32', config.hiddenSize]],
    ['qwen3.feed_forward_length', ['u32', config.intermediateSize]],
    ['qwen3.attention.head_count', ['u32', config.numAttentionHeads]],
    ['qwen3.attention.head_count_kv', ['u32', config.numKeyValueHeads]],
    ['qwen3.attention.key_length', ['u32', config.headDim]],
    ['qwen3.attention.value_length', ['u32', config.headDim]],
    ['qwen3.attention.layer_norm_rms_epsilon', ['f32', config.rmsNormEps]],
    ['qwen3.rope.freq_base', ['f32', config.ropeTheta]],
    ['tokenizer.ggml.bos_token_id', ['u32', 1]],
    ['tokenizer.ggml.eos_token_id', ['u32', 2]],
    ['tokenizer.ggml.eot_token_id', ['u32', 3]],
  ]
}

const magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]

function f16(bits: number): number {
  const [sign, exponent, mantissa] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023]
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1 + mantissa / 1024) * 2 ** (exponent - 15))
}

/** E4M3 without a sign; 0x7F is zero. */
function ue4m3(byte: number): number {
  if (byte === 0x7f) return 0
  const [exponent, mantissa] = [byte >> 3, byte & 7]
  return exponent === 0 ? mantissa * 2 ** -9 : (1 + mantissa / 8) * 2 ** (exponent - 7)
}

/** Random bytes of a type, and what they mean. */
export function randomTensor(kind: Kind, count: number, next: () => number): { data: Buffer; values: Float32Array } {
  const byte = () => Math.floor(next() * 256)
  const values = new Float32Array(count)
  const half = () => (0x2000 + Math.floor(next() * 0x1000)) | (next() < 0.5 ? 0x8000 : 0)
  if (kind === 'f32') {
    for (let i = 0; i < count; i++) values[i] = next() - 0.5
    return { data: Buffer.from(values.buffer), values }
  }
  if (kind === 'f16' || kind === 'bf16') {
    const bits = Uint16Array.from(values, () => (kind === 'f16' ? half() : half() + 0x1a00))
    bits.forEach((bit, i) => {
      values[i] = kind === 'f16' ? f16(bit) : new Float32Array(Uint32Array.of(bit << 16).buffer)[0]!
    })
    return { data: Buffer.from(bits.buffer), values }
  }
  const [size, columns] = kind === 'q8_0' ? [34, 32] : [36, 64]
  const data = Buffer.from(Uint8Array.from({ length: (count / columns) * size }, byte))
  for (let block = 0; block < count / columns; block++) {
    const at = block * size
    if (kind === 'q8_0') {
      data.writeUInt16LE(half() & 0x7fff, at)
      for (let i = 0; i < 32; i++) values[block * 32 + i] = f16(data.readUInt16LE(at)) * data.readInt8(at + 2 + i)
    } else {
      for (let s = 0; s < 4; s++) {
        data[at + s] = 0x20 + (byte() % 0x20)
        for (let j = 0; j < 16; j++) {
          const packed = data[at + 4 + s * 8 + (j % 8)]!
          const code = j < 8 ? packed & 15 : packed >> 4
          const value = magnitudes[code & 7]! * ue4m3(data[at + s]!)
          values[block * 64 + s * 16 + j] = code & 8 ? -value : value
        }
      }
    }
  }
  return { data, values }
}

/** Shapes of every tensor by its name in a GGUF, and of its name here. */
export function ggufShapes(config = ggufConfig): [string, string, number[]][] {
  const { hiddenSize: H, headDim: D, intermediateSize: F, vocabSize: V } = config
  const Q = config.numAttentionHeads * D
  const KV = config.numKeyValueHeads * D
  const layer = (i: number): [string, string, number[]][] => {
    const names: [string, string, number[]][] = [
      ['attn_norm', 'input_layernorm', [H]],
      ['attn_q', 'self_attn.q_proj', [Q, H]],
      ['attn_k', 'self_attn.k_proj', [KV, H]],
      ['attn_v', 'self_attn.v_proj', [KV, H]],
      ['attn_q_norm', 'self_attn.q_norm', [D]],
      ['attn_k_norm', 'self_attn.k_norm', [D]],
      ['attn_output', 'self_attn.o_proj', [H, Q]],
      ['ffn_norm', 'post_attention_layernorm', [H]],
      ['ffn_gate', 'mlp.gate_proj', [F, H]],
      ['ffn_up', 'mlp.up_proj', [F, H]],
      ['ffn_down', 'mlp.down_proj', [H, F]],
    ]
    return names.map(([gguf, hf, shape]) => [`blk.${i}.${gguf}.weight`, `model.layers.${i}.${hf}.weight`, shape])
  }
  return [
    ['token_embd.weight', 'model.embed_tokens.weight', [V, H]],
    ...Array.from({ length: config.numHiddenLayers }, (_, i) => layer(i)).flat(),
    ['output_norm.weight', 'model.norm.weight', [H]],
    ...(config.tieWordEmbeddings ? [] : [['output.weight', 'lm_head.weight', [V, H]] as [string, string, number[]]]),
  ]
}

export interface GgufModel {
  parts: GgufParts & { metadata: [string, Value][]; tensors: Tensor[] }
  /** By the names of Hugging Face. */
  values: Map<string, Float32Array>
}

/** Matrices of a kind, the embedding of another, norms in F32; with `scale` every NVFP4 matrix gets one, 1/8 or so. */
export function ggufModel(
  matrices: Kind,
  { embedding = matrices, scale = false, config = ggufConfig } = {},
): GgufModel {
  const next = uniformSource(11)
  const tensors: Tensor[] = []
  const values = new Map<string, Float32Array>()
  for (const [name, hf, shape] of ggufShapes(config)) {
    const isMatrix = shape.length > 1
    const kind = isMatrix ? (name === 'token_embd.weight' ? (embedding as Kind) : matrices) : 'f32'
    const made = randomTensor(
      kind,
      shape.reduce((a, b) => a * b, 1),
      next,
    )
    tensors.push({ name, type: ids[kind], shape, data: made.data })
    if (scale && kind === 'nvfp4') {
      const factor = Math.fround(0.1 + next() / 10)
      tensors.push({
        name: name.replace(/weight$/, 'scale'),
        type: 0,
        shape: [1],
        data: Buffer.from(Float32Array.of(factor).buffer),
      })
      made.values.forEach((value, i) => (made.values[i] = Math.fround(value * factor)))
    }
    values.set(hf, made.values)
  }
  return { parts: { metadata: ggufMetadata(config), tensors }, values }
}

/** A byte-level vocabulary with three added tokens, as llama.cpp's converter writes it. */
export function ggufTokenizer(tokenizer: Record<string, unknown>, size: number): [string, Value][] {
  const { model, added_tokens: added } = tokenizer as {
    model: { vocab: Record<string, number>; merges: (string | string[])[] }
    added_tokens: { id: number; content: string; special: boolean }[]
  }
  const tokens = Array.from({ length: size }, (_, id) => `[PAD${id}]`)
  const types = new Int32Array(size).fill(5)
  for (const [token, id] of Object.entries(model.vocab)) [tokens[id], types[id]] = [token, 1]
  for (const { id, content, special } of added) [tokens[id], types[id]] = [content, special ? 3 : 4]
  const idOf = (token: string) => tokens.indexOf(token)
  return [
    ['tokenizer.ggml.model', ['string', 'gpt2']],
    ['tokenizer.ggml.pre', ['string', 'qwen2']],
    ['tokenizer.ggml.tokens', ['strings', tokens]],
    ['tokenizer.ggml.token_type', ['numbers', types]],
    [
      'tokenizer.ggml.merges',
      ['strings', model.merges.map((merge) => (typeof merge === 'string' ? merge : merge.join(' ')))],
    ],
    ['tokenizer.ggml.eos_token_id', ['u32', idOf('<|im_end|>')]],
    ['tokenizer.ggml.padding_token_id', ['u32', idOf('<|endoftext|>')]],
    ['tokenizer.ggml.add_bos_token', ['bool', 0]],
    ['tokenizer.chat_template', ['string', tinyTokenizerConfig().chat_template as string]],
  ]
}
