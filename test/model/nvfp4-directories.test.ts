import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  openCheckpoint,
  Qwen3Nvfp4Model,
  SafetensorsReader,
  type CheckpointWarning,
  type SafetensorsTensor,
} from 'qwen3-nvfp4'
import { packedTensors, tinyConfig } from '../support/checkpoints'
import { failure, temporaryFolder } from '../support/files'
import {
  decodeNvfp4,
  nvfp4Tensors,
  quantizationConfigs,
  writeDirectory,
  type Nvfp4Way,
} from '../support/nvfp4-directories'

const ways: Nvfp4Way[] = ['modelopt', 'compressed-tensors']
const q = 'model.layers.0.self_attn.q_proj'

/** Tensors whose head is dense, as both ways leave it. */
function tensorsOf(way: Nvfp4Way, globalScale = 2 ** -7): Map<string, SafetensorsTensor> {
  const dat = packedTensors({ globalScale, rawType: 15 })
  for (const key of [...dat.keys()]) if (key.startsWith('lm_head')) dat.delete(key)
  const { vocabSize: V, hiddenSize: H } = tinyConfig
  dat.set('lm_head.weight', { elementType: 15, shape: [V, H], data: new Uint16Array(V * H).fill(0x3f80) })
  return nvfp4Tensors(way, dat)
}

const write = (way: Nvfp4Way, tensors = tensorsOf(way), quantization: object | null = quantizationConfigs[way]) =>
  writeDirectory(
    temporaryFolder(),
    tensors,
    tinyConfig,
    (quantization ?? undefined) as Record<string, unknown> | undefined,
  )

const refusal = (path: string) => failure(openCheckpoint(path))

test('the reciprocal global scale by hand: 2688 / amax divides, 0.5 · 448 · 12 / 2688 is 1', () => {
  // A matrix of amax 12: global 2688 / 12 = 224, its largest block's scale 448 and code 6: 6 · 448 / 224 = 12.
  const codes = Uint8Array.of(0x17, 0, 0, 0, 0, 0, 0, 0)
  const values = decodeNvfp4(codes, Uint8Array.of(0x7e), 16, { divisor: 224 })
  expect([values[0], values[1], values[2]]).toEqual([12, 1, 0])
  expect(decodeNvfp4(codes, Uint8Array.of(0x7e), 16, { factor: 12 / 2688 })[0]).toBe(12)
})

describe.each(ways)('%s', (way) => {
  test('is taken over bit for bit, and its values are those of an independent decoder', async () => {
    const tensors = tensorsOf(way)
    const folder = await write(way, tensors)
    const { format, sources } = await openCheckpoint(folder)
    expect(format).toBe(way)
    await using reader = await SafetensorsReader.open(join(folder, 'model.safetensors'))
    const codesKey = way === 'modelopt' ? `${q}.weight` : `${q}.weight_packed`
    const source = sources.find(({ parameter }) => parameter === `${q}.weight`)!
    expect(source.codes!.offset).toBe(reader.entry(codesKey).offset)
    expect(source.scales!.offset).toBe(reader.entry(`${q}.weight_scale`).offset)
    expect(source.globalScale).toBe(2 ** -7)

    await using model = await Qwen3Nvfp4Model.load(folder)
    expect(model.parameter(`${q}.weight`)!.storage).toBe('nvfp4')
    expect(model.parameter('lm_head.weight')!.storage).toBe('bf16')
    expect(model.parameter('model.embed_tokens.weight')!.storage).toBe('bf16')
    const codes = tensors.get(codesKey)!.data as Uint8Array
    const scales = tensors.get(`${q}.weight_scale`)!.data as Uint8Array
    const global = way === 'modelopt' ? { factor: 2 ** -7 } : { divisor: 2 ** 7 }
    expect(await model.parameter(`${q}.weight`)!.read()).toEqual(decodeNvfp4(codes, scales, 32, global))
  })

  test('trains on, and is saved, under a global scale that is no power of two', async () => {
    const folder = await write(way, tensorsOf(way, Math.fround(0.003)))
    await using model = await Qwen3Nvfp4Model.load(folder, { threads: 2 })
    const optimizer = model.createOptimizer({ lr: 1e-3 })
    const batch = { ids: [1, 2, 3, 4, 5, 6], labels: [1, 2, 3, 4, 5, 6] }
    const losses: number[] = []
    for (let i = 0; i < 8; i++) losses.push((await optimizer.trainStep(batch)).loss)
    expect(losses.at(-1)!).toBeLessThan(losses[0]!)
    const saved = join(folder, 'trained.dat')
    await model.saveDat(saved)
    await using again = await Qwen3Nvfp4Model.load(saved, { threads: 2 })
    expect(await again.parameter(`${q}.weight`)!.read()).toEqual(await model.parameter(`${q}.weight`)!.read())
  })

  test('keeps a global scale of its own for q, k and v', async () => {
    const tensors = tensorsOf(way)
    const suffix = way === 'modelopt' ? 'weight_scale_2' : 'weight_global_scale'
    for (const [i, name] of ['q_proj', 'k_proj', 'v_proj'].entries()) {
      const data = Float32Array.of(way === 'modelopt' ? 0.25 * (i + 1) : 4 / (i + 1))
      tensors.set(`model.layers.0.self_attn.${name}.${suffix}`, { dtype: 'float32', shape: [1], data })
    }
    const { sources } = await openCheckpoint(await write(way, tensors))
    const scaleOf = (name: string) => sources.find(({ parameter }) => parameter.endsWith(`0.self_attn.${name}.weight`))!
    expect(['q_proj', 'k_proj', 'v_proj'].map((name) => scaleOf(name).globalScale)).toEqual([0.25, 0.5, 0.75])
  })

  test.each([
    ['one scale for all', 1],
    ['a scale for each', 3],
  ])('splits a fused qkv_proj with %s', async (_, count) => {
    const tensors = tensorsOf(way)
    const codesSuffix = way === 'modelopt' ? 'weight' : 'weight_packed'
    const names = ['q_proj', 'k_proj', 'v_proj'].map((name) => `model.layers.0.self_attn.${name}`)
    const fused = 'model.layers.0.self_attn.qkv_proj'
    const apart = await openCheckpoint(await write(way, tensors))
    for (const suffix of [codesSuffix, 'weight_scale']) {
      const parts = names.map((name) => tensors.get(`${name}.${suffix}`)!)
      const data = Buffer.concat(parts.map(({ data }) => data as Uint8Array))
      const shape = [parts.reduce((sum, { shape }) => sum + shape[0]!, 0), parts[0]!.shape[1]!]
      for (const name of names) tensors.delete(`${name}.${suffix}`)
      tensors.set(`${fused}.${suffix}`, { dtype: parts[0]!.dtype, shape, data })
    }
    const suffix = way === 'modelopt' ? 'weight_scale_2' : 'weight_global_scale'
    for (const name of names) tensors.delete(`${name}.${suffix}`)
    const scales = Float32Array.from({ length: count }, (_, i) => 2 ** i)
    tensors.set(`${fused}.${suffix}`, { dtype: 'float32', shape: count === 1 ? [] : [3], data: scales })

    const { sources, files } = await openCheckpoint(await write(way, tensors))
    for (const [i, name] of names.entries()) {
      const source = sources.find(({ parameter }) => parameter === `${name}.weight`)!
      const before = apart.sources.find(({ parameter }) => parameter === `${name}.weight`)!
      const factor = way === 'modelopt' ? scales[count === 1 ? 0 : i]! : 1 / scales[count === 1 ? 0 : i]!
      expect(source.globalScale).toBe(factor)
      expect([source.codes!.bytes, source.scales!.bytes]).toEqual([before.codes!.bytes, before.scales!.bytes])
    }
    const ranges = names.map((name) => sources.find(({ parameter }) => parameter === `${name}.weight`)!.codes!)
    expect(ranges[1]!.offset).toBe(ranges[0]!.offset + ranges[0]!.bytes)
    expect(files).toHaveLength(1)
  })

  test('ignores scales of activations and of the cache with a warning, and keeps quiet about nothing else', async () => {
    const tensors = tensorsOf(way)
    const scalar: SafetensorsTensor = { dtype: 'float32', shape: [], data: Float32Array.of(1) }
    const ignored = [`${q}.${way === 'modelopt' ? 'input_scale' : 'input_global_scale'}`, `${q}.k_scale`]
    for (const key of ignored) tensors.set(key, scalar)
    const warnings: CheckpointWarning[] = []
    const model = await Qwen3Nvfp4Model.load(await write(way, tensors), { onWarning: (each) => warnings.push(each) })
    await model.dispose()
    expect(warnings).toMatchObject([{ code: 'IGNORED_TENSORS', tensors: ignored }])
  })

  test('names every tensor that is missing, and one that is unexpected', async () => {
    const tensors = tensorsOf(way)
    tensors.delete(`${q}.weight_scale`)
    tensors.delete('model.layers.1.mlp.up_proj.' + (way === 'modelopt' ? 'weight_scale_2' : 'weight_packed'))
    expect(await refusal(await write(way, tensors))).toMatchObject({
      code: 'CHECKPOINT_MISSING_TENSORS',
      message: expect.stringMatching(/lacks 2 tensors \(.*q_proj\.weight_scale, .*up_proj\.weight_(scale_2|packed)\)/),
    })
    const more = tensorsOf(way).set('model.layers.0.self_attn.q_proj.bias', {
      dtype: 'uint8',
      shape: [1],
      data: Uint8Array.of(1),
    })
    expect(await refusal(await write(way, more))).toMatchObject({ code: 'CHECKPOINT_UNEXPECTED_TENSORS' })
  })

  test('refuses scales of AWQ, FP8 weights under its name, a scale that is no number, and another way in its config', async () => {
    const awq = tensorsOf(way).set(`${q}.pre_quant_scale`, {
      dtype: 'float32',
      shape: [32],
      data: new Float32Array(32).fill(1),
    })
    expect(await refusal(await write(way, awq))).toMatchObject({
      code: 'CHECKPOINT_UNSUPPORTED_TENSORS',
      message: expect.stringContaining(`${q}.pre_quant_scale`),
    })
    const codesKey = way === 'modelopt' ? `${q}.weight` : `${q}.weight_packed`
    const fp8 = tensorsOf(way).set(codesKey, { dtype: 'float8_e4m3fn', shape: [64, 32], data: new Uint8Array(2048) })
    expect(await refusal(await write(way, fp8))).toMatchObject({
      code: 'CHECKPOINT_UNSUPPORTED_TYPE',
      message: expect.stringContaining('float8_e4m3fn'),
    })
    const suffix = way === 'modelopt' ? 'weight_scale_2' : 'weight_global_scale'
    const zero = tensorsOf(way).set(`${q}.${suffix}`, { dtype: 'float32', shape: [1], data: new Float32Array(1) })
    expect(await refusal(await write(way, zero))).toMatchObject({ code: 'CHECKPOINT_BAD_SCALE' })
    const other = ways.find((each) => each !== way)!
    expect(await refusal(await write(way, tensorsOf(way), quantizationConfigs[other]))).toMatchObject({
      code: 'CHECKPOINT_BAD_INDEX',
      message: expect.stringContaining(other),
    })
  })
})

describe('quantization_config', () => {
  const base = quantizationConfigs
  const cases: [string, object, string][] = [
    ['gptq', { quant_method: 'gptq', bits: 4 }, 'received "gptq"'],
    ['bitsandbytes in 8 bits', { quant_method: 'bitsandbytes', load_in_8bit: true }, 'load_in_8bit but received true'],
    ['no method', { bits: 4 }, 'received nothing'],
    ['FP8 of ModelOpt', { ...base.modelopt, quant_algo: 'FP8' }, 'quant_algo but received "FP8"'],
    [
      'FP8 in a layer',
      {
        ...base.modelopt,
        quant_algo: 'MIXED_PRECISION',
        quantized_layers: {
          'model.layers.0.self_attn.q_proj': { quant_algo: 'NVFP4', group_size: 16 },
          'model.layers.0.mlp.up_proj': { quant_algo: 'FP8' },
        },
      },
      'quantized_layers.model.layers.0.mlp.up_proj.quant_algo but received "FP8"',
    ],
    [
      'blocks of 32 in a layer',
      {
        ...base.modelopt,
        quant_algo: 'MIXED_PRECISION',
        quantized_layers: { lm_head: { quant_algo: 'NVFP4', group_size: 32 } },
      },
      'quantized_layers.lm_head.group_size but received 32',
    ],
    ['blocks of 32', { ...base.modelopt, group_size: 32 }, 'group_size but received 32'],
    ['ints', { ...base['compressed-tensors'], format: 'pack-quantized' }, 'format but received "pack-quantized"'],
    [
      'eight bits',
      { ...base['compressed-tensors'], config_groups: { group_0: { weights: { num_bits: 8 } } } },
      'config_groups.group_0.weights.num_bits but received 8',
    ],
    ['sparsity', { ...base['compressed-tensors'], sparsity_config: { format: 'sparse-24' } }, 'received "sparse-24"'],
  ]
  test.each(cases)('refuses %s by name and says what is supported', async (_, quantization, message) => {
    expect(await refusal(await write('modelopt', tensorsOf('modelopt'), quantization))).toMatchObject({
      code: 'CONFIG_UNSUPPORTED',
      message: expect.stringContaining(message),
    })
  })

  test('may name the algorithm of each layer, in either file, and the others are dense', async () => {
    const layer = { quant_algo: 'NVFP4', group_size: 16 }
    const tensors = tensorsOf('modelopt')
    const names = [...tensors.keys()].filter((key) => key.endsWith('.weight_scale'))
    const layers = Object.fromEntries(names.map((key) => [key.replace('.weight_scale', ''), layer]))
    const mixed = { ...base.modelopt, quant_algo: 'MIXED_PRECISION' }
    const open = async (folder: string) => (await openCheckpoint(folder)).sources.filter(({ codes }) => codes).length
    expect(await open(await write('modelopt', tensors, { ...mixed, quantized_layers: layers }))).toBe(names.length)
    const folder = await write('modelopt', tensors, mixed)
    expect(await open(folder)).toBe(names.length)
    const writeOwn = (layers: object) => {
      const quantization = { quant_algo: 'MIXED_PRECISION', quantized_layers: layers }
      writeFileSync(join(folder, 'hf_quant_config.json'), JSON.stringify({ quantization }))
    }
    writeOwn(layers)
    expect(await open(folder)).toBe(names.length)
    writeOwn({ ...layers, lm_head: { quant_algo: 'W4A8_AWQ' } })
    expect(await refusal(folder)).toMatchObject({
      code: 'CONFIG_UNSUPPORTED',
      message: expect.stringMatching(/hf_quant_config.*quantized_layers\.lm_head\.quant_algo but received "W4A8_AWQ"/),
    })
  })

  test('may stand in hf_quant_config.json alone, and says that a cache was quantised', async () => {
    const folder = await write('modelopt', tensorsOf('modelopt'), null)
    const quantization = {
      quant_algo: 'NVFP4',
      group_size: 16,
      kv_cache_quant_algo: 'FP8',
      exclude_modules: ['lm_head'],
    }
    const file = join(folder, 'hf_quant_config.json')
    writeFileSync(file, JSON.stringify({ producer: { name: 'modelopt' }, quantization }))
    const { format, warnings } = await openCheckpoint(folder)
    expect(format).toBe('modelopt')
    expect(warnings).toMatchObject([{ code: 'QUANTIZED_CACHE', message: expect.stringContaining('FP8') }])
    writeFileSync(file, JSON.stringify({ quantization: { ...quantization, quant_algo: 'NVFP4_AWQ' } }))
    expect(await refusal(folder)).toMatchObject({ code: 'CONFIG_UNSUPPORTED' })
  })
})
