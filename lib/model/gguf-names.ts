/** What the tensors of a Qwen3 are called in a GGUF. */
import type { IndexedEntry } from './checkpoint-match'

const outer: Readonly<Record<string, string>> = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  lm_head: 'output',
}

const inner: Readonly<Record<string, string>> = {
  input_layernorm: 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'self_attn.o_proj': 'attn_output',
  post_attention_layernorm: 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}

/** `model.layers.0.self_attn.q_proj` is `blk.0.attn_q`; weights and scales have suffixes. */
export function ggufModule(module: string): string {
  const [, layer, name] = /^model\.layers\.(\d+)\.(.+)$/.exec(module) ?? []
  return name === undefined ? outer[module]! : `blk.${layer}.${inner[name]!}`
}

/** NVFP4 has codes and scales in one tensor: seen here as two of the same bytes. */
export function splitNvfp4(entries: readonly IndexedEntry[]): IndexedEntry[] {
  return entries.flatMap((entry) => {
    if (entry.dtype !== 'nvfp4') return [entry]
    return ['codes', 'scales'].map((part) => ({ ...entry, key: `${entry.key}.${part}`, storedAs: entry.key }))
  })
}
