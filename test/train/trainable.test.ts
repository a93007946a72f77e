import { selectTrainable, type TrainableSelection } from 'qwen3-nvfp4'

const names = [
  'model.embed_tokens.weight',
  'model.layers.0.mlp.up_proj.weight',
  'model.layers.1.input_layernorm.weight',
  'model.layers.1.mlp.up_proj.weight',
  'model.layers.11.mlp.up_proj.weight',
  'model.norm.weight',
  'lm_head.weight',
]

const untied = { numHiddenLayers: 12, tieWordEmbeddings: false }
const chosen = (selection: TrainableSelection, config = untied) => names.filter(selectTrainable(selection, config))

describe('selectTrainable', () => {
  test('takes everything unless told otherwise', () => {
    expect(chosen({})).toEqual(names)
  })

  test('lastLayers leaves out the layers before, embedding and head', () => {
    expect(chosen({ lastLayers: 1 })).toEqual(['model.layers.11.mlp.up_proj.weight', 'model.norm.weight'])
    expect(chosen({ lastLayers: 11, head: true })).toEqual(names.slice(2))
  })

  test('names are texts with stars, or patterns', () => {
    expect(chosen({ names: ['model.layers.*.up_proj.weight'] })).toEqual([names[1], names[3], names[4]])
    expect(chosen({ names: ['up_proj'] })).toEqual([])
    expect(chosen({ names: [/norm/, 'lm_head.*'] })).toEqual([names[2], names[5], names[6]])
    expect(chosen({ names: [/up_proj/], lastLayers: 1 })).toEqual([names[4]])
  })

  test('embedding and head are chosen apart, unless they are one', () => {
    expect(chosen({ embedding: false })).toEqual(names.slice(1, -1))
    expect(chosen({ embedding: false, head: true })).toEqual(names.slice(1))
    const tied = { numHiddenLayers: 12, tieWordEmbeddings: true }
    expect(() => selectTrainable({ embedding: false, head: true }, tied)).toThrow(
      'Expected false, as the head is the embedding, for trainable.head but received true',
    )
  })

  test.each<[unknown, string]>([
    [{ lastLayers: 13 }, 'Expected an integer from 1 to 12 for trainable.lastLayers but received 13'],
    [{ names: [3] }, 'Expected a text or a RegExp for trainable.names[0] but received 3'],
    [{ heads: true }, 'did you mean head?'],
  ])('refuses %j', (selection, message) => {
    expect(() => selectTrainable(selection as TrainableSelection, untied)).toThrow(message)
  })
})
