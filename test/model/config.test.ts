import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseQwen3Config, readQwen3Config, toConfigJson } from 'qwen3-nvfp4'
import { describeWithShared, sharedPath, temporaryFolder } from '../support/files'

const base = {
  architectures: ['Qwen3ForCausalLM'],
  model_type: 'qwen3',
  attention_bias: false,
  hidden_act: 'silu',
  hidden_size: 64,
  intermediate_size: 160,
  num_attention_heads: 4,
  num_hidden_layers: 2,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_theta: 5_000_000,
  vocab_size: 512,
}

const refusals: [string, object, string, RegExp][] = [
  [
    'another model_type',
    { model_type: 'qwen3_moe' },
    'CONFIG_UNSUPPORTED',
    /Expected "qwen3" for model_type but received "qwen3_moe"/,
  ],
  [
    'no model_type and no architecture',
    { model_type: null, architectures: [] },
    'CONFIG_UNSUPPORTED',
    /model_type but received nothing/,
  ],
  [
    'another architecture',
    { architectures: ['LlamaForCausalLM'] },
    'CONFIG_UNSUPPORTED',
    /architectures but received "LlamaForCausalLM"/,
  ],
  [
    'attention biases',
    { attention_bias: true },
    'CONFIG_UNSUPPORTED',
    /Expected false for attention_bias but received true/,
  ],
  ['another activation', { hidden_act: 'gelu' }, 'CONFIG_UNSUPPORTED', /"silu" for hidden_act but received "gelu"/],
  [
    'weights quantised in another way',
    { quantization_config: { quant_method: 'awq' } },
    'CONFIG_UNSUPPORTED',
    /quantization_config/,
  ],
  ['an odd head_dim', { head_dim: 15 }, 'CONFIG_UNSUPPORTED', /even number for head_dim but received 15/],
  [
    'key/value heads that do not divide the heads',
    { num_key_value_heads: 3 },
    'CONFIG_INVALID',
    /divisor of num_attention_heads 4 for num_key_value_heads but received 3/,
  ],
  ['a missing size', { hidden_size: undefined }, 'CONFIG_INVALID', /hidden_size but received nothing/],
  ['a size that is text', { vocab_size: '512' }, 'CONFIG_INVALID', /vocab_size but received "512"/],
  ['a size of zero', { intermediate_size: 0 }, 'CONFIG_INVALID', /intermediate_size but received 0/],
  [
    'more layers than any model',
    { num_hidden_layers: 2 ** 20 },
    'CONFIG_INVALID',
    /num_hidden_layers but received 1048576/,
  ],
  ['no epsilon', { rms_norm_eps: null }, 'CONFIG_INVALID', /rms_norm_eps but received nothing/],
  ['an epsilon of zero', { rms_norm_eps: 0 }, 'CONFIG_INVALID', /rms_norm_eps but received 0/],
  ['no rope base', { rope_theta: undefined }, 'CONFIG_INVALID', /rope_theta but received nothing/],
  [
    'rope bases that disagree',
    { rope_parameters: { rope_theta: 1e6 } },
    'CONFIG_INVALID',
    /the same as rope_theta 5000000 for rope_parameters.rope_theta but received 1000000/,
  ],
  [
    'scaled rope, old spelling',
    { rope_scaling: { type: 'yarn', factor: 4 } },
    'CONFIG_UNSUPPORTED',
    /"default" for rope_scaling.type but received "yarn"/,
  ],
  [
    'scaled rope, new spelling',
    { rope_parameters: { rope_type: 'linear' } },
    'CONFIG_UNSUPPORTED',
    /rope_parameters.rope_type but received "linear"/,
  ],
  ['partial rope', { rope_parameters: { partial_rotary_factor: 0.5 } }, 'CONFIG_UNSUPPORTED', /partial_rotary_factor/],
  [
    'a sliding layer',
    { layer_types: ['full_attention', 'sliding_attention'] },
    'CONFIG_UNSUPPORTED',
    /layer_types but received "sliding_attention"/,
  ],
  [
    'layer types for other layers',
    { layer_types: ['full_attention'] },
    'CONFIG_INVALID',
    /num_hidden_layers 2 for layer_types/,
  ],
  [
    'a window in use, old spelling',
    { use_sliding_window: true, sliding_window: 4096, max_window_layers: 1 },
    'CONFIG_UNSUPPORTED',
    /use_sliding_window/,
  ],
  ['a flag that is text', { tie_word_embeddings: 'yes' }, 'CONFIG_INVALID', /tie_word_embeddings but received "yes"/],
  ['an end token that is no id', { eos_token_id: [1, -2] }, 'CONFIG_INVALID', /eos_token_id\.1 but received -2/],
]

describe('parseQwen3Config', () => {
  test('takes everything from the file, and a head_dim of 128 where it names none', () => {
    expect(
      parseQwen3Config({ ...base, eos_token_id: [7, 8], bos_token_id: null, max_position_embeddings: 99 }),
    ).toEqual({
      hiddenSize: 64,
      numHiddenLayers: 2,
      numAttentionHeads: 4,
      numKeyValueHeads: 2,
      headDim: 128,
      intermediateSize: 160,
      vocabSize: 512,
      ropeTheta: 5e6,
      rmsNormEps: 1e-6,
      tieWordEmbeddings: false,
      maxPositionEmbeddings: 99,
      eosTokenIds: [7, 8],
    })
  })

  test('finds the rope base where newer files have it, and accepts agreement', () => {
    const nested = { rope_type: 'default', rope_theta: 123456 }
    expect(parseQwen3Config({ ...base, rope_theta: undefined, rope_parameters: nested }).ropeTheta).toBe(123456)
    expect(parseQwen3Config({ ...base, rope_theta: 123456, rope_parameters: nested }).ropeTheta).toBe(123456)
  })

  test('accepts a window that no layer uses', () => {
    const window = { use_sliding_window: true, sliding_window: 4096 }
    expect(parseQwen3Config({ ...base, ...window, max_window_layers: 2 }).hiddenSize).toBe(64)
    expect(
      parseQwen3Config({ ...base, use_sliding_window: true, sliding_window: null, max_window_layers: 0 }).hiddenSize,
    ).toBe(64)
  })

  test.each(refusals)('refuses %s', (name, change, code, message) => {
    expect(() => parseQwen3Config({ ...base, ...change }, 'there/config.json')).toThrow(message)
    expect(() => parseQwen3Config({ ...base, ...change }, 'there/config.json')).toThrow(
      expect.objectContaining({
        code,
        file: 'there/config.json',
        message: expect.stringMatching(/^there\/config\.json: Expected /),
      }),
    )
  })

  test('refuses what is no configuration at all', async () => {
    for (const json of [null, [], 'text', 7]) expect(() => parseQwen3Config(json)).toThrow(/a JSON object/)
    const path = join(temporaryFolder(), 'config.json')
    await expect(readQwen3Config(path)).rejects.toMatchObject({ code: 'IO_FAILED', cause: { code: 'ENOENT' } })
    writeFileSync(path, '{"hidden_size": 64,')
    await expect(readQwen3Config(path)).rejects.toMatchObject({ code: 'CONFIG_INVALID', file: path })
  })

  test('adds the ends of generation_config.json beside it, one or a list, each once', async () => {
    const folder = temporaryFolder()
    const write = (name: string, json: object) => writeFileSync(join(folder, name), JSON.stringify(json))
    const ends = async (name = 'config.json') => (await readQwen3Config(join(folder, name))).eosTokenIds
    write('config.json', { ...base, eos_token_id: 7 })
    write('other.config.json', { ...base, eos_token_id: 7 })
    expect(await ends()).toEqual([7])
    write('generation_config.json', { eos_token_id: [9, 7], temperature: 0.6 })
    expect(await ends()).toEqual([7, 9])
    expect(await ends('other.config.json')).toEqual([7])
    write('generation_config.json', { eos_token_id: 3 })
    expect(await ends()).toEqual([7, 3])
    write('config.json', base)
    expect(await ends()).toEqual([3])
    write('generation_config.json', {})
    expect(await ends()).toBeUndefined()
    for (const bad of [{ eos_token_id: 'end' }, { eos_token_id: [1, -1] }, []]) {
      write('generation_config.json', bad)
      await expect(ends()).rejects.toMatchObject({ code: 'CONFIG_INVALID', message: /generation_config\.json/ })
    }
    writeFileSync(join(folder, 'generation_config.json'), '{')
    await expect(ends()).rejects.toMatchObject({ code: 'CONFIG_INVALID', message: /generation_config\.json: not JSON/ })
  })

  test('reads what toConfigJson writes', () => {
    for (const change of [{}, { eos_token_id: 5 }, { eos_token_id: [5, 6], tie_word_embeddings: true, head_dim: 32 }]) {
      const config = parseQwen3Config({ ...base, ...change })
      expect(parseQwen3Config(JSON.parse(JSON.stringify(toConfigJson(config))))).toEqual(config)
    }
  })
})

describeWithShared('config.json of real checkpoints', ['qwen3', 'config.json'], () => {
  test('Qwen3-4B has its own rope base and heads wider than its hidden size', async () => {
    const config = await readQwen3Config(sharedPath('qwen3', 'config.json'))
    expect(config).toMatchObject({
      hiddenSize: 2560,
      headDim: 128,
      ropeTheta: 5e6,
      vocabSize: 151936,
      tieWordEmbeddings: true,
    })
    expect(config).toMatchObject({ bosTokenId: 151643, eosTokenIds: [151645], numKeyValueHeads: 8 })
  })

  test.each(['tiny-tied', 'tiny-untied', 'tiny-mha'])('%s of transformers 5 is read', async (name) => {
    expect((await readQwen3Config(sharedPath('hf-parity', name, 'config.json'))).ropeTheta).toBeGreaterThan(0)
  })
})
