import type { Qwen3Config } from '../../types/config'

/** A parameter as the checkpoint names it; a vector (norm) has rows = 1. */
export interface ParameterSpec {
  name: string
  rows: number
  cols: number
  isVector: boolean
}

/** Every parameter in the core's order: must stay in step with parameter_specs() of csrc/model/config.cpp. */
export function parameterSpecs(config: Qwen3Config): ParameterSpec[] {
  const { hiddenSize: H, headDim: D, intermediateSize: F, vocabSize: V } = config
  const Q = config.numAttentionHeads
  const KV = config.numKeyValueHeads
  const matrix = (name: string, rows: number, cols: number) => ({ name: `${name}.weight`, rows, cols, isVector: false })
  const vector = (name: string, cols: number) => ({ name: `${name}.weight`, rows: 1, cols, isVector: true })
  const layer = (i: number) => {
    const prefix = `model.layers.${i}.`
    return [
      vector(`${prefix}input_layernorm`, H),
      matrix(`${prefix}self_attn.q_proj`, Q * D, H),
      matrix(`${prefix}self_attn.k_proj`, KV * D, H),
      matrix(`${prefix}self_attn.v_proj`, KV * D, H),
      vector(`${prefix}self_attn.q_norm`, D),
      vector(`${prefix}self_attn.k_norm`, D),
      matrix(`${prefix}self_attn.o_proj`, H, Q * D),
      vector(`${prefix}post_attention_layernorm`, H),
      matrix(`${prefix}mlp.gate_proj`, F, H),
      matrix(`${prefix}mlp.up_proj`, F, H),
      matrix(`${prefix}mlp.down_proj`, H, F),
    ]
  }
  return [
    matrix('model.embed_tokens', V, H),
    ...Array.from({ length: config.numHiddenLayers }, (_, i) => layer(i)).flat(),
    vector('model.norm', H),
    ...(config.tieWordEmbeddings ? [] : [matrix('lm_head', V, H)]),
  ]
}
