/** The configuration of a Qwen3 as the metadata of a GGUF has it, and back. */
import type { Qwen3Config } from '../../types/config'
import type { GgufValue, TensorEntry } from '../../types/format'
import type { GgufWrittenValue } from '../format/gguf-writer'
import { parseQwen3Config, toConfigJson } from './config'
import { Fields, maxDimension } from './config-fields'

/** What else may end an answer, in the order in which `eosTokenIds` has them. */
const endings = ['eos', 'eot', 'eom'] as const

/** The length that transformers takes where a configuration has none; a GGUF has to have one. */
const defaultContext = 32768

/** Everything that the computation depends on; what is not implemented is refused by its key. */
export function configOfGguf(
  metadata: ReadonlyMap<string, GgufValue>,
  entries: readonly TensorEntry[],
  file: string,
): Qwen3Config {
  const field = new Fields(Object.fromEntries(metadata), file)
  refuseOtherModels(field)
  const hiddenSize = field.dimension('qwen3.embedding_length')
  const heads = field.dimension('qwen3.attention.head_count')
  const headDim = field.dimension('qwen3.attention.key_length', hiddenSize / heads)
  for (const key of ['qwen3.attention.value_length', 'qwen3.rope.dimension_count']) {
    if (field.has(key) && field.get(key) !== headDim) throw field.unsupported(key, `the key length ${headDim}`)
  }
  const keys = new Set(entries.map(({ key }) => key))
  const eos = endings
    .map((name) => `tokenizer.ggml.${name}_token_id`)
    .filter((key) => field.has(key))
    .map((key) => field.integer(key, 0, maxDimension))
  const config: Qwen3Config = {
    hiddenSize,
    numHiddenLayers: field.dimension('qwen3.block_count'),
    numAttentionHeads: heads,
    numKeyValueHeads: field.dimension('qwen3.attention.head_count_kv', heads),
    headDim,
    intermediateSize: field.dimension('qwen3.feed_forward_length'),
    vocabSize: vocabularyOf(field, entries),
    ropeTheta: decimalOf(field.positive('qwen3.rope.freq_base')),
    rmsNormEps: decimalOf(field.positive('qwen3.attention.layer_norm_rms_epsilon')),
    tieWordEmbeddings: !keys.has('output.weight'),
    maxPositionEmbeddings: field.dimension('qwen3.context_length'),
    ...(field.has('tokenizer.ggml.bos_token_id') && {
      bosTokenId: field.integer('tokenizer.ggml.bos_token_id', 0, maxDimension),
    }),
    ...(eos.length > 0 && { eosTokenIds: [...new Set(eos)] }),
  }
  return parseQwen3Config(toConfigJson(config), file)
}

/** The keys of the architecture, and the ids of a tokenizer that are part of the configuration. */
export function ggufOfConfig(config: Qwen3Config): [string, GgufWrittenValue][] {
  const integers: [string, number][] = [
    ['qwen3.context_length', config.maxPositionEmbeddings ?? defaultContext],
    ['qwen3.embedding_length', config.hiddenSize],
    ['qwen3.block_count', config.numHiddenLayers],
    ['qwen3.feed_forward_length', config.intermediateSize],
    ['qwen3.attention.head_count', config.numAttentionHeads],
    ['qwen3.attention.head_count_kv', config.numKeyValueHeads],
    ['qwen3.attention.key_length', config.headDim],
    ['qwen3.attention.value_length', config.headDim],
    ['qwen3.vocab_size', config.vocabSize],
    ...(config.bosTokenId === undefined
      ? []
      : [['tokenizer.ggml.bos_token_id', config.bosTokenId] as [string, number]]),
    ...endings.flatMap((name, i) => {
      const id = config.eosTokenIds?.[i]
      return id === undefined ? [] : [[`tokenizer.ggml.${name}_token_id`, id] as [string, number]]
    }),
  ]
  return [
    ['general.architecture', { type: 'string', value: 'qwen3' }],
    ['general.type', { type: 'string', value: 'model' }],
    ['qwen3.rope.freq_base', { type: 'float32', value: config.ropeTheta }],
    ['qwen3.attention.layer_norm_rms_epsilon', { type: 'float32', value: config.rmsNormEps }],
    ...integers.map(([key, value]): [string, GgufWrittenValue] => [key, { type: 'uint32', value }]),
  ]
}

function refuseOtherModels(field: Fields): void {
  if (field.get('general.architecture') !== 'qwen3') throw field.unsupported('general.architecture', '"qwen3"')
  if (field.has('general.type') && field.get('general.type') !== 'model') {
    throw field.unsupported('general.type', '"model"')
  }
  if (field.has('split.count') && field.integer('split.count', 0, maxDimension) > 1) {
    throw field.unsupported('split.count', '1 (llama-gguf-split --merge makes one file of the parts)')
  }
  const scaling = 'qwen3.rope.scaling.type'
  if (field.has(scaling) && field.get(scaling) !== 'none') throw field.unsupported(scaling, '"none"')
  const window = 'qwen3.attention.sliding_window'
  if (field.has(window) && field.get(window) !== 0) throw field.unsupported(window, '0')
}

/** The embedding has the last word; without one the tokens are counted, so that it is named as missing. */
function vocabularyOf(field: Fields, entries: readonly TensorEntry[]): number {
  const embedding = entries.find(({ key }) => key === 'token_embd.weight')
  if (embedding?.shape.length === 2) return embedding.shape[0]!
  if (field.has('qwen3.vocab_size')) return field.dimension('qwen3.vocab_size')
  const tokens = field.get('tokenizer.ggml.tokens')
  if (Array.isArray(tokens) && tokens.length > 0) return tokens.length
  throw field.invalid('tokenizer.ggml.tokens', 'a vocabulary')
}

/** The shortest decimal number of this float32: 1e-6 was meant where 9.999999974752427e-7 is read. */
function decimalOf(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits))
    if (Math.fround(short) === Math.fround(value)) return short
  }
  return value
}
