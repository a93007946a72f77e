import bindings from 'bindings'
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import {
  openCheckpoint,
  Qwen3Nvfp4Model,
  SafetensorsReader,
  toConfigJson,
  writeSafetensors,
  type DatTensor,
  type LoadOptions,
  type Parameter,
} from 'qwen3-nvfp4'
import { packedTensors, tinyConfig, writeModel, type PackedOptions } from '../support/checkpoints'
import { describeWithShared, sharedPath, temporaryFolder } from '../support/files'

const parameter = (model: Qwen3Nvfp4Model, name: string): Parameter =>
  [...model.parameters()].find((each) => each.name === name)!

const write = (options: PackedOptions = {}, change: (tensors: Map<string, DatTensor>) => void = () => {}) => {
  const tensors = packedTensors(options)
  change(tensors)
  return writeModel(temporaryFolder(), tensors, options.config)
}

async function savedBytes(model: Qwen3Nvfp4Model): Promise<Buffer> {
  const path = join(temporaryFolder(), 'saved.dat')
  await model.saveDat(path)
  return readFileSync(path)
}

const magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]

/** By the definition of the format; only the three scale bytes that packedTensors uses. */
function decode({ data: codes }: DatTensor, { data: scales }: DatTensor, global: number): Float32Array {
  const scaleOf: Record<number, number> = { 0x20: 0.125, 0x38: 1, 0x3e: 1.75 }
  const bytes = codes as Uint8Array
  return Float32Array.from({ length: bytes.length * 2 }, (_, i) => {
    const code = (bytes[i >> 1]! >> (4 * (i & 1))) & 15
    const value = magnitudes[code & 7]! * scaleOf[(scales as Uint8Array)[i >> 4]!]! * global
    return code & 8 ? -value : value
  })
}

describe('Qwen3Nvfp4Model.load of a .dat', () => {
  const inputs: [string, PackedOptions][] = [
    ['the prior layout', {}],
    ['the other spelling', { spelling: '' }],
    ['codes of id 100, scales of id 0', { codesType: 100, scalesType: 0 }],
    ['fp16 scales', { scalesType: 5, rawType: 15 }],
    ['fp32 scales', { scalesType: 6, rawType: 6 }],
    ['two levels', { globalScale: 2 ** -9, packEmbedding: true }],
  ]
  test.each(inputs)('keeps %s so that saving writes it byte for byte', async (name, options) => {
    const path = await write(options)
    await using model = await Qwen3Nvfp4Model.load(path)
    expect((await savedBytes(model)).equals(readFileSync(path))).toBe(true)
  })

  test.each([
    ['nvfp4', 1],
    ['nvfp4', 2 ** -9],
    ['fp32', 1],
    ['fp32', 2 ** -9],
    ['bf16', 2 ** -9],
    ['fp16', 2 ** -9],
  ] as const)('decodes NVFP4 into %s exactly under a global scale of %p', async (weights, globalScale) => {
    const options = globalScale === 1 ? {} : { globalScale }
    const tensors = packedTensors(options)
    await using model = await Qwen3Nvfp4Model.load(await write(options), { weights })
    for (const key of ['model.layers.1.mlp.down_proj.weight', 'lm_head.weight']) {
      const expected = decode(tensors.get(`${key}.qdata`)!, tensors.get(`${key}.scale`)!, globalScale)
      expect(parameter(model, key).storage).toBe(weights)
      expect(await parameter(model, key).read()).toEqual(expected)
    }
  })

  test('gives the same bytes for any number of threads', async () => {
    const path = await write({ rawType: 6 })
    const options: LoadOptions = { embedding: 'nvfp4', scales: 'two-level' }
    await using one = await Qwen3Nvfp4Model.load(path, { ...options, threads: 1 })
    await using three = await Qwen3Nvfp4Model.load(path, { ...options, threads: 3 })
    expect((await savedBytes(one)).equals(await savedBytes(three))).toBe(true)
  })

  test('reports progress that never falls and ends at the total', async () => {
    const seen: { doneBytes: number; totalBytes: number }[] = []
    await using model = await Qwen3Nvfp4Model.load(await write(), { onProgress: (progress) => seen.push(progress) })
    expect(model.config).toEqual(tinyConfig)
    const done = seen.map(({ doneBytes }) => doneBytes)
    expect(done).toEqual([...done].sort((a, b) => a - b))
    expect(done.at(-1)).toBe(seen.at(-1)!.totalBytes)
  })

  test('stops with the reason of the signal', async () => {
    const signal = AbortSignal.abort(new Error('not now'))
    await expect(Qwen3Nvfp4Model.load(await write(), { signal })).rejects.toThrow('not now')
  })
})

describe('Qwen3Nvfp4Model.load refuses', () => {
  const gate = 'model.layers.1.mlp.gate_proj.weight'
  const setScale = (value: number) => (tensors: Map<string, DatTensor>) => {
    ;(tensors.get(`${gate}.scale`)!.data as Uint8Array)[2 * 5 + 1] = value
  }

  test.each([
    ['a NaN scale', {}, 0x7f, 'NON_FINITE_WEIGHT'],
    ['a negative NaN scale', {}, 0xff, 'NON_FINITE_WEIGHT'],
    ['a negative scale', {}, 0xb8, 'NON_FINITE_WEIGHT'],
    ['a scale of minus zero', {}, 0x80, 'NON_FINITE_WEIGHT'],
    ['an fp16 scale that is NaN', { scalesType: 5 }, 0x7e00, 'NON_FINITE_WEIGHT'],
    ['an fp16 scale that is infinite', { scalesType: 5 }, 0x7c00, 'INVALID_ARGUMENT'],
    ['an fp16 scale that is no E4M3 value', { scalesType: 5 }, 0x3c01, 'INVALID_ARGUMENT'],
    ['an fp32 scale above 448', { scalesType: 6 }, 0x43e00001, 'INVALID_ARGUMENT'],
    ['a negative fp32 scale', { scalesType: 6 }, 0xbf800000, 'NON_FINITE_WEIGHT'],
  ] as const)('%s by tensor, row and block', async (name, options, value, code) => {
    for (const weights of [undefined, 'bf16'] as const) {
      const loading = Qwen3Nvfp4Model.load(await write(options, setScale(value)), { weights })
      await expect(loading).rejects.toMatchObject({
        code,
        message: expect.stringMatching(/model\.layers\.1\.mlp\.gate_proj\.weight .* at row 5, block 1/),
      })
    }
  })

  test.each([
    ['fp16', 5, 0x7c00],
    ['bf16', 15, 0xff80],
    ['fp32', 6, 0x7fc00000],
  ] as const)('a %s value that is NaN or infinite, by tensor, row and column', async (name, rawType, value) => {
    const spoil = (tensors: Map<string, DatTensor>) => {
      ;(tensors.get('model.embed_tokens.weight')!.data as Uint16Array)[32 * 7 + 3] = value
    }
    for (const embedding of ['as-stored', 'nvfp4'] as const) {
      const weights = embedding === 'nvfp4' ? 'nvfp4' : undefined
      const loading = Qwen3Nvfp4Model.load(await write({ rawType }, spoil), { embedding, weights })
      await expect(loading).rejects.toMatchObject({
        code: 'NON_FINITE_WEIGHT',
        message: expect.stringMatching(/model\.embed_tokens\.weight .* at row 7, column 3/),
      })
    }
  })

  test('values that overflow the 16 bits asked for', async () => {
    const options = { globalScale: 2 ** 20 }
    const loading = Qwen3Nvfp4Model.load(await write(options), { weights: 'fp16' })
    await expect(loading).rejects.toMatchObject({ code: 'NON_FINITE_WEIGHT', message: /too large for its 16 bits/ })
    await using model = await Qwen3Nvfp4Model.load(await write(options), { weights: 'bf16' })
    expect(model.config).toEqual(tinyConfig)
  })

  test('codes that a huge global scale takes out of the range of fp32', async () => {
    for (const weights of ['fp32', 'bf16'] as const) {
      const loading = Qwen3Nvfp4Model.load(await write({ globalScale: 2 ** 126 }), { weights })
      await expect(loading).rejects.toMatchObject({
        code: 'NON_FINITE_WEIGHT',
        message: /holds the value -?inf at row/,
      })
    }
  })

  test('a file that became shorter after its index was read', async () => {
    const path = await write()
    const { sources, files } = await openCheckpoint(path)
    const addon = bindings({ bindings: 'qwen3_nvfp4', module_root: resolve(__dirname, '../..') })
    const c = tinyConfig
    const shape = { H: c.hiddenSize, L: c.numHiddenLayers, Q: c.numAttentionHeads, KV: c.numKeyValueHeads }
    const rest = { D: c.headDim, F: c.intermediateSize, V: c.vocabSize, ropeBase: c.ropeTheta, eps: c.rmsNormEps }
    const device = new addon.Device('cpu', 1, '')
    const model = new addon.Model(device, { ...shape, ...rest, tied: false }, 'w4a16')
    const options = { quantize: false, dense: '', quantizeRawEmbedding: false, twoLevel: true, scaleRule: 'amax' }
    await expect(model.load(files, sources.slice(1), options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    truncateSync(path, readFileSync(path).length - 5)
    await expect(model.load(files, sources, options)).rejects.toMatchObject({
      code: 'FILE_TRUNCATED',
      message: expect.stringMatching(/model\.dat ends at byte .* inside lm_head\.weight/),
    })
    await model.dispose()
  })
})

describe('Qwen3Nvfp4Model.load of a Hugging Face directory', () => {
  const folderOf = async (dtype: 'float32' | 'bfloat16') => {
    const folder = temporaryFolder()
    await using model = await Qwen3Nvfp4Model.initialize(tinyConfig, {
      weights: dtype === 'float32' ? 'fp32' : 'bf16',
      seed: 5,
    })
    const tensors = new Map<string, { dtype: typeof dtype; shape: number[]; data: Float32Array | Uint16Array }>()
    for (const each of model.parameters()) {
      const values = await each.read()
      const bits = new Uint32Array(values.buffer)
      const data = dtype === 'float32' ? values : Uint16Array.from(bits, (word) => word >>> 16)
      tensors.set(each.name, { dtype, shape: [...each.shape], data })
    }
    await writeSafetensors(join(folder, 'model.safetensors'), tensors)
    writeFileSync(join(folder, 'config.json'), JSON.stringify(toConfigJson(tinyConfig)))
    return folder
  }

  test.each(['float32', 'bfloat16'] as const)(
    'quantises %s as Parameter.write does, in one or two levels',
    async (dtype) => {
      const folder = await folderOf(dtype)
      for (const scales of ['two-level', 'one-level'] as const) {
        await using loaded = await Qwen3Nvfp4Model.load(folder, { scales })
        await using dense = await Qwen3Nvfp4Model.load(folder, { weights: 'fp32' })
        await using written = await Qwen3Nvfp4Model.load(folder, { scales })
        for (const each of written.parameters()) await each.write(new Float32Array(each.count).fill(0.25))
        const blank = await savedBytes(written)
        for (const each of written.parameters()) await each.write(await parameter(dense, each.name).read())
        expect((await savedBytes(written)).equals(await savedBytes(loaded))).toBe(true)
        expect((await savedBytes(loaded)).equals(blank)).toBe(false)
        expect(parameter(loaded, 'lm_head.weight').storage).toBe('nvfp4')
      }
    },
  )
})

describeWithShared(
  'Qwen3Nvfp4Model.load of shared checkpoints',
  ['hf-parity', 'tiny-tied', 'model.safetensors'],
  () => {
    test.each(['tiny-tied', 'tiny-untied', 'tiny-mha'])('%s in fp32 holds the values of its file', async (name) => {
      await using model = await Qwen3Nvfp4Model.load(sharedPath('hf-parity', name), { weights: 'fp32' })
      await using reader = await SafetensorsReader.open(sharedPath('hf-parity', name, 'model.safetensors'))
      for (const each of model.parameters()) expect(await each.read()).toEqual(await reader.read(each.name))
    })

    test.each(['tiny-tied-fp16.dat', 'tiny-tied-fp32.dat'])('%s is saved byte for byte', async (name) => {
      await using model = await Qwen3Nvfp4Model.load(sharedPath('dat', name), {
        modelDir: sharedPath('hf-parity', 'tiny-tied'),
      })
      expect((await savedBytes(model)).equals(readFileSync(sharedPath('dat', name)))).toBe(true)
    })
  },
)
