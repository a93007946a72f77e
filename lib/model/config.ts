import { basename, dirname, join } from 'node:path'
import type { Qwen3Config } from '../../types/config'
import { checkPath } from '../check'
import { Fields, maxDimension, objectOf, readJson } from './config-fields'
import { parseQuantization } from './quantization-config'

const maxLayers = 4096

/**
 * Reads and checks a config.json of Hugging Face. A generation_config.json beside a file of that name adds its
 * eos_token_id, one or a list, to `eosTokenIds`: chat models end a turn and a document by different tokens, and often
 * only that file names both.
 */
export async function readQwen3Config(path: string | URL): Promise<Qwen3Config> {
  const file = checkPath('path', path)
  const config = parseQwen3Config(await readJson(file), file)
  const beside = basename(file) === 'config.json' ? join(dirname(file), 'generation_config.json') : undefined
  const generation = beside && (await readJson(beside, true))
  if (beside && generation !== undefined) {
    const field = new Fields(objectOf(generation, beside), beside)
    const more = field.has('eos_token_id') ? eosTokenIds(field) : []
    if (more.length > 0) config.eosTokenIds = [...new Set([...(config.eosTokenIds ?? []), ...more])]
  }
  return config
}

/**
 * The configuration in a parsed config.json. Everything that the computation depends on comes from here, and what it
 * does not implement is refused: another architecture, biases, sliding windows, scaled rope, another activation.
 */
export function parseQwen3Config(json: unknown, file = 'config'): Qwen3Config {
  const field = new Fields(objectOf(json, file), file)
  refuseOtherModels(field)
  const hiddenSize = field.dimension('hidden_size')
  const numHiddenLayers = field.integer('num_hidden_layers', 1, maxLayers)
  const numAttentionHeads = field.dimension('num_attention_heads')
  const numKeyValueHeads = field.dimension('num_key_value_heads', numAttentionHeads)
  // transformers' default for Qwen3, whatever hidden_size / num_attention_heads is.
  const headDim = field.dimension('head_dim', 128)
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    throw field.invalid('num_key_value_heads', `a divisor of num_attention_heads ${numAttentionHeads}`)
  }
  if (headDim % 2 !== 0) throw field.unsupported('head_dim', 'an even number')
  refuseSlidingWindow(field, numHiddenLayers)

  const config: Qwen3Config = {
    hiddenSize,
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    intermediateSize: field.dimension('intermediate_size'),
    vocabSize: field.dimension('vocab_size'),
    ropeTheta: ropeTheta(field),
    rmsNormEps: field.positive('rms_norm_eps'),
    tieWordEmbeddings: field.flag('tie_word_embeddings'),
  }
  if (field.has('max_position_embeddings')) {
    config.maxPositionEmbeddings = field.integer('max_position_embeddings', 1, Number.MAX_SAFE_INTEGER)
  }
  if (field.has('bos_token_id')) config.bosTokenId = field.integer('bos_token_id', 0, maxDimension)
  if (field.has('eos_token_id')) config.eosTokenIds = eosTokenIds(field)
  return config
}

/** A config.json that Hugging Face transformers and parseQwen3Config read as `config`. */
export function toConfigJson(config: Qwen3Config): Record<string, unknown> {
  const eos = config.eosTokenIds ?? []
  return {
    architectures: ['Qwen3ForCausalLM'],
    model_type: 'qwen3',
    attention_bias: false,
    attention_dropout: 0,
    bos_token_id: config.bosTokenId ?? null,
    eos_token_id: eos.length > 1 ? eos : (eos[0] ?? null),
    head_dim: config.headDim,
    hidden_act: 'silu',
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    ...(config.maxPositionEmbeddings === undefined ? {} : { max_position_embeddings: config.maxPositionEmbeddings }),
    num_attention_heads: config.numAttentionHeads,
    num_hidden_layers: config.numHiddenLayers,
    num_key_value_heads: config.numKeyValueHeads,
    rms_norm_eps: config.rmsNormEps,
    rope_scaling: null,
    rope_theta: config.ropeTheta,
    sliding_window: null,
    tie_word_embeddings: config.tieWordEmbeddings,
    use_sliding_window: false,
    vocab_size: config.vocabSize,
  }
}

function refuseOtherModels(field: Fields): void {
  const architectures = field.get('architectures')
  const named = Array.isArray(architectures) && architectures.length > 0
  if (field.has('model_type') ? field.get('model_type') !== 'qwen3' : !named) {
    throw field.unsupported('model_type', '"qwen3"')
  }
  if (named && !architectures.includes('Qwen3ForCausalLM')) {
    throw field.unsupported('architectures', '["Qwen3ForCausalLM"]', architectures.join(', '))
  }
  if (field.has('quantization_config')) parseQuantization(field.object('quantization_config'))
  if (field.flag('attention_bias')) throw field.unsupported('attention_bias', 'false')
  if (field.has('hidden_act') && field.get('hidden_act') !== 'silu') throw field.unsupported('hidden_act', '"silu"')
}

/** A window is in use where a layer is of the sliding kind: by name, or from max_window_layers on in older files. */
function refuseSlidingWindow(field: Fields, layers: number): void {
  const types = field.get('layer_types')
  if (field.has('layer_types')) {
    if (!Array.isArray(types) || types.length !== layers) {
      throw field.invalid('layer_types', `a list of num_hidden_layers ${layers}`)
    }
    const other = types.find((type) => type !== 'full_attention')
    if (other !== undefined) throw field.unsupported('layer_types', '"full_attention" for every layer', other)
  } else if (field.flag('use_sliding_window') && field.has('sliding_window')) {
    // transformers' own default of max_window_layers
    if (field.integer('max_window_layers', 0, maxDimension, 28) < layers) {
      throw field.unsupported('use_sliding_window', 'false')
    }
  }
}

/** The base stands at the top in older files, under rope_parameters in newer ones, or in both, which must agree. */
function ropeTheta(field: Fields): number {
  const bases = new Map<string, number>()
  if (field.has('rope_theta')) bases.set('rope_theta', field.positive('rope_theta'))
  for (const name of ['rope_parameters', 'rope_scaling']) {
    if (!field.has(name)) continue
    const rope = ropeOfLayers(field.object(name))
    for (const kind of ['rope_type', 'type']) {
      if (rope.has(kind) && rope.get(kind) !== 'default') throw rope.unsupported(kind, '"default"')
    }
    if (rope.has('partial_rotary_factor') && rope.get('partial_rotary_factor') !== 1) {
      throw rope.unsupported('partial_rotary_factor', '1')
    }
    if (rope.has('rope_theta')) bases.set(`${name}.rope_theta`, rope.positive('rope_theta'))
  }
  const [first, ...others] = bases
  if (!first) throw field.invalid('rope_theta', 'a positive number')
  const [name, base] = first
  const other = others.find(([, value]) => value !== base)
  if (other) throw field.invalid(other[0], `the same as ${name} ${base}`, other[1])
  return base
}

/** transformers 5 may keep one set of parameters for each kind of layer; only one kind is supported. */
function ropeOfLayers(rope: Fields): Fields {
  return rope.has('full_attention') ? rope.object('full_attention') : rope
}

function eosTokenIds(field: Fields): number[] {
  const value = field.get('eos_token_id')
  if (!Array.isArray(value)) return [field.integer('eos_token_id', 0, maxDimension)]
  const ids = new Fields(Object.fromEntries(value.entries()), field.file, 'eos_token_id.')
  return value.map((_, i) => ids.integer(String(i), 0, maxDimension))
}
