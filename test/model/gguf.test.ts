import { join } from 'node:path'
import { inspect, openCheckpoint, Qwen3Nvfp4Model, readDat, verify } from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import { u32, writeGguf, type Tensor, type Value } from '../support/gguf'
import { ggufConfig, ggufMetadata, ggufModel, ggufShapes, type GgufModel, type Kind } from '../support/gguf-model'

const q = 'model.layers.0.self_attn.q_proj.weight'

const write = ({ parts }: GgufModel, name = 'x.gguf') => writeGguf(join(temporaryFolder(), name), parts)

async function refusal(model: GgufModel) {
  return (await openCheckpoint(write(model)).catch((error: unknown) => error)) as { code: string; message: string }
}

/** The same model with other metadata. */
function withValues(...changes: [string, Value][]): GgufModel {
  const { parts, values } = ggufModel('f16')
  return { parts: { ...parts, metadata: [...new Map([...parts.metadata, ...changes])] }, values }
}

async function valuesOf(path: string, weights: 'fp32' | undefined = 'fp32'): Promise<Map<string, Float32Array>> {
  await using model = await Qwen3Nvfp4Model.load(path, { threads: 2, ...(weights && { weights }) })
  const values = new Map<string, Float32Array>()
  for (const parameter of model.parameters()) values.set(parameter.name, await parameter.read())
  return values
}

describe('a GGUF gives the values that ggml defines', () => {
  const cases: [Kind, { embedding?: Kind; scale?: boolean }][] = [
    ['f32', {}],
    ['f16', {}],
    ['bf16', {}],
    ['q8_0', {}],
    ['nvfp4', { embedding: 'q8_0' }],
    ['nvfp4', { embedding: 'bf16', scale: true }],
  ]
  test.each(cases)('%s %j', async (kind, options) => {
    const model = ggufModel(kind, options)
    expect(await valuesOf(write(model))).toEqual(model.values)
  })

  test('NVFP4 stays NVFP4 and dense modules dense by default', async () => {
    const model = ggufModel('nvfp4', { embedding: 'q8_0', scale: true })
    const path = write(model)
    expect(await valuesOf(path, undefined)).toEqual(model.values)
    await using loaded = await Qwen3Nvfp4Model.load(path, { threads: 1 })
    expect(loaded.parameter(q)).toMatchObject({ storage: 'nvfp4' })
    expect(loaded.parameter('model.embed_tokens.weight')).toMatchObject({ storage: 'fp32' })
  })

  test('an untied head is output.weight; the configuration comes from the metadata', async () => {
    const config = { ...ggufConfig, tieWordEmbeddings: false }
    const model = ggufModel('f16', { config })
    const path = write(model)
    expect((await openCheckpoint(path)).config).toEqual(config)
    expect(await valuesOf(path)).toEqual(model.values)
    expect((await openCheckpoint(write(ggufModel('f16')))).config).toEqual(ggufConfig)
  })
})

test('of 16 columns a byte of ggml has j and j + 8, and a byte here 2j and 2j + 1: one block by hand', async () => {
  // Columns 0 to 15 are the codes 1 2 3 4 5 6 7 8 A B C D E F 0 9: values .5 1 1.5 2 3 4 6 -0 -1 -1.5 -2 -3 -4 -6 0 -.5.
  const ggml = [0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 0x07, 0x98]
  const here = [0x21, 0x43, 0x65, 0x87, 0xba, 0xdc, 0xfe, 0x90]
  const values = [0.5, 1, 1.5, 2, 3, 4, 6, -0, -1, -1.5, -2, -3, -4, -6, 0, -0.5]
  const model = ggufModel('nvfp4', { embedding: 'f16' })
  const tensor = model.parts.tensors.find(({ name }) => name === 'blk.0.attn_q.weight')!
  // Scales 1.5 (0x3C), 2^-9 (0x01), 0x7F, which is zero in ggml, and 448 (0x7E).
  tensor.data.set([0x3c, 0x01, 0x7f, 0x7e, ...ggml, ...ggml, ...ggml, ...ggml])
  const folder = temporaryFolder()
  const path = writeGguf(join(folder, 'x.gguf'), model.parts)
  await using loaded = await Qwen3Nvfp4Model.load(path, { threads: 1 })
  const read = await loaded.parameter(q)!.read()
  const expected = [1.5, 2 ** -9, 0, 448].flatMap((scale) => values.map((value) => value * scale))
  expect([...read.subarray(0, 64)].map((x) => x + 0)).toEqual(expected.map((x) => x + 0))

  await loaded.saveDat(join(folder, 'x.dat'))
  const dat = await readDat(join(folder, 'x.dat'))
  expect([...(dat.get(`${q}.qdata`)!.data as Uint8Array).subarray(0, 32)]).toEqual([...here, ...here, ...here, ...here])
  expect([...(dat.get(`${q}.scale`)!.data as Uint8Array).subarray(0, 4)]).toEqual([0x3c, 0x01, 0x00, 0x7e])
  expect(await verify(path, join(folder, 'x.dat'), { by: 'bits' })).toMatchObject({ equal: true })
})

describe('inspect and verify', () => {
  test('inspect says what is in a GGUF, and its scales', async () => {
    const model = ggufModel('nvfp4', { embedding: 'q8_0', scale: true })
    const found = await inspect(write(model), { scales: true })
    expect(found).toMatchObject({ format: 'gguf', config: ggufConfig, missing: [], unexpected: [], problems: [] })
    const matrix = found.tensors.find(({ key }) => key === 'blk.1.ffn_up.weight')!
    expect(matrix).toMatchObject({
      dtype: 'nvfp4',
      shape: [128, 64],
      parameter: 'model.layers.1.mlp.up_proj.weight',
      scales: { blocks: 512, zero: 0, subnormal: 0, invalid: 0 },
    })
    const scales = model.parts.tensors.find(({ name }) => name === matrix.key)!.data.filter((_, i) => i % 36 < 4)
    expect(Math.log2(matrix.scales!.smallest)).toBeGreaterThanOrEqual(-3)
    expect(scales).toHaveLength(512)
  })

  test('verify by bits sees one nibble and one scale, by values what they change', async () => {
    const [a, b] = [ggufModel('nvfp4', { embedding: 'f16' }), ggufModel('nvfp4', { embedding: 'f16' })]
    const tensor = b.parts.tensors.find(({ name }) => name === 'blk.0.attn_v.weight')!
    tensor.data[36 + 4 + 9]! ^= 0x70 // the second block, columns 16 to 31, byte 1: column 25
    const [one, other] = [write(a), write(b)]
    const name = 'model.layers.0.self_attn.v_proj.weight'
    const byBits = await verify(one, other, { by: 'bits' })
    expect(byBits.differences).toEqual([{ name, kind: 'bits', message: `codes differ from byte ${32 + 8 + 4} on` }])
    const byValues = await verify(one, other)
    expect(byValues.differences).toMatchObject([{ name, kind: 'values', different: 1 }])
    expect((await verify(one, one, { by: 'bits' })).equal).toBe(true)
  })
})

describe('refused', () => {
  test.each<[string, [string, Value], RegExp]>([
    ['another architecture', ['general.architecture', ['string', 'llama']], /"qwen3" for general.architecture .*llama/],
    ['an adapter', ['general.type', ['string', 'adapter']], /general.type/],
    ['a part of a split model', ['split.count', ['u32', 3]], /merge.*split.count/],
    ['a scaled rope', ['qwen3.rope.scaling.type', ['string', 'yarn']], /rope.scaling.type.*yarn/],
    ['a sliding window', ['qwen3.attention.sliding_window', ['u32', 4096]], /sliding_window/],
    ['values of another length than keys', ['qwen3.attention.value_length', ['u32', 64]], /value_length/],
    ['a partial rope', ['qwen3.rope.dimension_count', ['u32', 16]], /dimension_count/],
  ])('%s', async (_, change, message) => {
    const error = await refusal(withValues(change))
    expect(error).toMatchObject({ code: 'CONFIG_UNSUPPORTED', message: expect.stringMatching(message) as string })
  })

  test.each<[string, [string, Value], RegExp]>([
    ['no number of layers', ['qwen3.block_count', ['string', 'two']], /block_count/],
    ['heads a layer', ['qwen3.attention.head_count', ['numbers', Uint32Array.of(4, 4)]], /head_count/],
    ['a rope base of NaN', ['qwen3.rope.freq_base', ['raw', 6, u32(0x7fc00000)]], /freq_base/],
    ['layers without end', ['qwen3.block_count', ['u64', 2n ** 60n]], /block_count/],
  ])('%s', async (_, change, message) => {
    const error = await refusal(withValues(change))
    expect(error).toMatchObject({ code: 'CONFIG_INVALID', message: expect.stringMatching(message) as string })
  })

  test('another quantisation, by its name with what is supported; inspect shows the rest', async () => {
    const model = ggufModel('f16', { config: { ...ggufConfig, hiddenSize: 256 } })
    const tensor = model.parts.tensors.find(({ name }) => name === 'blk.0.attn_q.weight')!
    Object.assign(tensor, { type: 12, data: Buffer.alloc(128 * 144) })
    expect(await refusal(model)).toMatchObject({
      code: 'CHECKPOINT_UNSUPPORTED_TYPE',
      message: expect.stringMatching(
        /float32 \| float16 \| bfloat16 \| q8_0 \| nvfp4 for blk.0.attn_q.weight .* q4_k/,
      ) as string,
    })
    const found = await inspect(write(model))
    expect(found.problems).toHaveLength(1)
    expect(found.tensors).toHaveLength(ggufShapes().length)
  })

  test('missing, unexpected and misshapen tensors, by the names of the file', async () => {
    const model = ggufModel('nvfp4', { embedding: 'f16' })
    const { tensors } = model.parts
    const without = (name: string): GgufModel => ({
      ...model,
      parts: { ...model.parts, tensors: tensors.filter((tensor) => tensor.name !== name) },
    })
    expect(await refusal(without('blk.1.ffn_down.weight'))).toMatchObject({
      code: 'CHECKPOINT_MISSING_TENSORS',
      message: expect.stringContaining('blk.1.ffn_down.weight') as string,
    })
    const extra: Tensor = { name: 'blk.0.attn_q.bias', type: 0, shape: [128], data: Buffer.alloc(512) }
    expect(await refusal({ ...model, parts: { ...model.parts, tensors: [...tensors, extra] } })).toMatchObject({
      code: 'CHECKPOINT_UNEXPECTED_TENSORS',
      message: expect.stringContaining('blk.0.attn_q.bias') as string,
    })
    const wide = tensors.map((tensor) =>
      tensor.name === 'blk.0.attn_k.weight' ? { ...tensor, shape: [32, 128] } : tensor,
    )
    expect(await refusal({ ...model, parts: { ...model.parts, tensors: wide } })).toMatchObject({
      code: 'CHECKPOINT_SHAPE_MISMATCH',
      message: expect.stringMatching(/blk.0.attn_k.weight .*\[32, 128\]/) as string,
    })
  })

  test('a factor of a dense matrix, and scales that are no numbers', async () => {
    const dense = ggufModel('f16')
    const factor = { name: 'blk.0.attn_q.scale', type: 0, shape: [1], data: Buffer.from(Float32Array.of(2).buffer) }
    const parts = { ...dense.parts, tensors: [...dense.parts.tensors, factor] }
    expect(await refusal({ ...dense, parts })).toMatchObject({ code: 'CHECKPOINT_UNSUPPORTED_TENSORS' })

    const scaled = ggufModel('nvfp4', { embedding: 'f16', scale: true })
    scaled.parts.tensors.find(({ name }) => name === 'blk.0.attn_q.scale')!.data.set(Buffer.alloc(4))
    expect(await refusal(scaled)).toMatchObject({ code: 'CHECKPOINT_BAD_SCALE' })

    const negative = ggufModel('nvfp4', { embedding: 'f16' })
    negative.parts.tensors.find(({ name }) => name === 'blk.0.attn_q.weight')!.data[37] = 0xbc
    const load = Qwen3Nvfp4Model.load(write(negative), { threads: 1 })
    await expect(load).rejects.toMatchObject({
      code: 'NON_FINITE_WEIGHT',
      message: expect.stringContaining(q) as string,
    })

    const infinite = ggufModel('q8_0')
    infinite.parts.tensors.find(({ name }) => name === 'blk.0.attn_q.weight')!.data.set([0x00, 0x7c], 34)
    const loadInfinite = Qwen3Nvfp4Model.load(write(infinite), { threads: 1 })
    await expect(loadInfinite).rejects.toMatchObject({ code: 'NON_FINITE_WEIGHT' })
  })

  test('a metadata key that is absent names itself', async () => {
    const model = ggufModel('f16')
    const metadata = ggufMetadata().filter(([key]) => key !== 'qwen3.rope.freq_base')
    expect(await refusal({ ...model, parts: { ...model.parts, metadata } })).toMatchObject({
      code: 'CONFIG_INVALID',
      message: expect.stringMatching(/qwen3.rope.freq_base but received nothing/) as string,
    })
  })
})
