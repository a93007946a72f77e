/** 4-bit weights of bitsandbytes: from its safetensors and from `.dat` files, run as they are, and written again. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatReader, openCheckpoint, Qwen3Nvfp4Model, SafetensorsReader, type CheckpointWarning } from 'qwen3-nvfp4'
import {
  bnb4Quantization,
  bnb4Tensors,
  denseValues,
  dynamicMap,
  encodeBnb4,
  encodeModel,
  writeBnb4Dat,
  writeBnb4Directory,
  writeValues,
  type Bnb4Way,
} from '../support/bnb4-files'
import { temporaryFolder } from '../support/files'
import { expectClose, expectSameBytes } from '../support/expect-close'

const q = 'model.layers.0.self_attn.q_proj.weight'
const threads = 2

const ways: [string, Bnb4Way][] = (['nf4', 'fp4'] as const).flatMap((codebook) => [
  [`${codebook}`, { codebook }],
  [`${codebook}, twice quantised`, { codebook, nested: true }],
])

type Made = ReturnType<typeof bnb4Tensors>

const writeDirectory = (way: Bnb4Way, { tensors }: Made = bnb4Tensors(way)) =>
  writeBnb4Directory(temporaryFolder(), tensors, bnb4Quantization(way))

const writeDat = (way: Bnb4Way, { tensors }: Made = bnb4Tensors(way)) =>
  writeBnb4Dat(join(temporaryFolder(), 'model-4bit.dat'), tensors)

const ids = [
  [3, 1, 4, 1, 5, 9, 2, 6],
  [5, 3, 5, 8, 9, 7, 9, 3],
]

async function logitsOf(path: string, options = {}): Promise<Float32Array> {
  await using model = await Qwen3Nvfp4Model.load(path, { threads, ...options })
  const { logits } = await model.forward(ids, { logits: 'all' })
  return logits!.toFloat32Array()
}

describe('by hand', () => {
  test('the first element is in the high nibble, blocks follow the flattened tensor, and each has its absmax', async () => {
    const made = bnb4Tensors({ codebook: 'nf4' })
    const codes = made.tensors.get(q)!.data as Uint8Array
    const absmax = made.tensors.get(`${q}.absmax`)!.data as Float32Array
    // Codes 15, 0, 7, 1 under 3 and, in the second row, 8 and 14 under 0.5.
    codes.set([0xf0, 0x71])
    codes.set([0x8e], 32)
    absmax.set([3, 0.5])
    await using model = await Qwen3Nvfp4Model.load(await writeDirectory({ codebook: 'nf4' }, made), { threads })
    const values = await model.parameter(q)!.read()
    expect(Array.from(values.subarray(0, 4))).toEqual([3, -3, 0, Math.fround(-0.6961928009986877 * 3)])
    const second = [0.07958029955625534 * 0.5, 0.7229568362236023 * 0.5]
    expect(Array.from(values.subarray(64, 66))).toEqual(second)
  })

  test('the fp4 of bitsandbytes has an order of its own: 0011 is 1, 1101 is -1/2, 0001 is 1/192', async () => {
    const made = bnb4Tensors({ codebook: 'fp4' })
    ;(made.tensors.get(q)!.data as Uint8Array).set([0x3d, 0x1a])
    ;(made.tensors.get(`${q}.absmax`)!.data as Float32Array).set([24])
    await using model = await Qwen3Nvfp4Model.load(await writeDat({ codebook: 'fp4' }, made), { threads })
    expect(Array.from((await model.parameter(q)!.read()).subarray(0, 4))).toEqual([24, -12, 0.125, -16])
  })

  test('a twice quantised absmax is map[code] · nested absmax + offset', async () => {
    const way: Bnb4Way = { codebook: 'nf4', nested: true }
    const made = bnb4Tensors(way)
    const map = made.tensors.get(`${q}.nested_quant_map`)!.data as Float32Array
    const state = made.tensors.get(`${q}.quant_state.bitsandbytes__nf4`)!
    const json = { ...JSON.parse(Buffer.from(state.data as Uint8Array).toString()), nested_offset: 0.75 }
    state.data = Uint8Array.from(Buffer.from(JSON.stringify(json)))
    state.shape = [state.data.length]
    map[200] = 0.5
    ;(made.tensors.get(`${q}.absmax`)!.data as Uint8Array).set([200])
    ;(made.tensors.get(`${q}.nested_absmax`)!.data as Float32Array).set([0.5])
    ;(made.tensors.get(q)!.data as Uint8Array).set([0xf0])
    await using model = await Qwen3Nvfp4Model.load(await writeDirectory(way, made), { threads })
    expect(Array.from((await model.parameter(q)!.read()).subarray(0, 2))).toEqual([1, -1])
  })

  test('the map of bitsandbytes has 256 numbers from -0.993 to 1', () => {
    const map = dynamicMap()
    expect(map).toHaveLength(256)
    expect(new Set(map).size).toBe(256)
    expect([map[0], map[127], map[255]]).toEqual([Math.fround(-0.99296875), 0, 1])
  })
})

describe.each(ways)('%s', (_, way) => {
  const made = bnb4Tensors(way)

  test.each(['safetensors', 'a .dat'] as const)(
    'loads from %s as it is, and computes with its very values',
    async (kind) => {
      const isDat = kind === 'a .dat'
      const path = await (isDat ? writeDat(way, made) : writeDirectory(way, made))
      expect((await openCheckpoint(path)).format).toBe(isDat ? 'dat' : 'bitsandbytes')
      await using model = await Qwen3Nvfp4Model.load(path, { threads })
      for (const { name, storage, codebook, shape } of model.parameters()) {
        expect([storage, codebook]).toEqual(name.includes('_proj') ? ['bnb4', way.codebook] : ['fp32', undefined])
        expect(shape).toEqual(made.values.get(name)!.shape)
        expectSameBytes(await model.parameter(name)!.read(), made.values.get(name)!.values)
      }
      const dense = await writeValues(temporaryFolder(), made.values)
      expectClose(await logitsOf(path), await logitsOf(dense, { weights: 'fp32' }), 1e-5, 1e-5)
    },
  )

  // Only a state has the offset of double quantisation.
  if (!way.nested)
    test('a .dat without states, under the names of the prior system, in long blocks: the same', async () => {
      for (const other of [
        { ...way, state: false, stem: '' },
        { ...way, state: false, stem: '.weight' },
        { ...way, blockSize: 256 },
        { ...way, blockSize: 4096, state: false },
      ] as const) {
        const wanted = bnb4Tensors(other)
        await using model = await Qwen3Nvfp4Model.load(await writeDat(other, wanted), { threads })
        for (const { name } of model.parameters()) {
          expectSameBytes(await model.parameter(name)!.read(), wanted.values.get(name)!.values)
        }
      }
    })

  test('other weights can be asked for: fp32 keeps every value, bf16 and NVFP4 are made of them', async () => {
    const path = await writeDirectory(way, made)
    await using dense = await Qwen3Nvfp4Model.load(path, { threads, weights: 'fp32' })
    expect(dense.parameter(q)!.storage).toBe('fp32')
    expectSameBytes(await dense.parameter(q)!.read(), made.values.get(q)!.values)
    await using packed = await Qwen3Nvfp4Model.load(path, { threads, weights: 'nvfp4' })
    expect(packed.parameter(q)!.storage).toBe('nvfp4')
    const values = made.values.get(q)!.values
    await using direct = await Qwen3Nvfp4Model.load(await writeValues(temporaryFolder(), made.values), {
      threads,
      weights: 'nvfp4',
      embedding: 'as-stored',
    })
    expectSameBytes(await packed.parameter(q)!.read(), await direct.parameter(q)!.read())
    await using half = await Qwen3Nvfp4Model.load(path, { threads, weights: 'bf16' })
    expectClose(await half.parameter(q)!.read(), values, 0, 2 ** -8)
  })

  test('a .dat is written again byte for byte, and restored in place', async () => {
    for (const other of [way, { ...way, blockSize: 128 }, ...(way.nested ? [] : [{ ...way, state: false }])]) {
      const path = await writeDat(other)
      await using model = await Qwen3Nvfp4Model.load(path, { threads })
      const saved = join(temporaryFolder(), 'again.dat')
      await model.saveDat(saved)
      expect(readFileSync(saved).equals(readFileSync(path))).toBe(true)
      const before = await model.parameter(q)!.read()
      await model.restoreDat(saved)
      expectSameBytes(await model.parameter(q)!.read(), before)
    }
  })

  test.each(['nvfp4', 'bf16'] as const)('a .dat that was loaded as %s is written as that', async (weights) => {
    const path = await writeDat(way, made)
    await using model = await Qwen3Nvfp4Model.load(path, { threads, weights })
    const saved = join(temporaryFolder(), 'saved.dat')
    await model.saveDat(saved)
    await using reader = await DatReader.open(saved)
    expect(reader.has(`${q}.absmax`)).toBe(false)
    await using again = await Qwen3Nvfp4Model.load(saved, { threads })
    expect(again.parameter(q)!.storage).toBe(weights)
    expectSameBytes(await again.parameter(q)!.read(), await model.parameter(q)!.read())
  })

  test('from safetensors it is written as a .dat with an f32 absmax for every 64 elements', async () => {
    for (const other of [way, { ...way, blockSize: 512 }]) {
      await using model = await Qwen3Nvfp4Model.load(await writeDirectory(other), { threads })
      const saved = join(temporaryFolder(), 'saved.dat')
      await model.saveDat(saved)
      await using reader = await DatReader.open(saved)
      expect(reader.entry(q)).toMatchObject({ elementType: 0, shape: [128 * 32, 1] })
      expect(reader.entry(`${q}.absmax`)).toMatchObject({ elementType: 6, shape: [128] })
      expect(reader.has(`${q}.quant_map`)).toBe(true)
      await using again = await Qwen3Nvfp4Model.load(saved, { threads })
      expect(again.parameter(q)!.codebook).toBe(way.codebook)
      expectSameBytes(await again.parameter(q)!.read(), await model.parameter(q)!.read())
    }
  })
})

describe('variants', () => {
  const way: Bnb4Way = { codebook: 'nf4' }

  test('codes with the first element low are read when a file without states is said to have them', async () => {
    const low: Bnb4Way = { ...way, nibbles: 'low-first', state: false }
    const made = bnb4Tensors(low)
    const path = await writeDat(low, made)
    await using model = await Qwen3Nvfp4Model.load(path, { threads, nibbles: 'low-first' })
    expectSameBytes(await model.parameter(q)!.read(), made.values.get(q)!.values)
    const saved = join(temporaryFolder(), 'again.dat')
    await model.saveDat(saved)
    expect(readFileSync(saved).equals(readFileSync(path))).toBe(true)
    await using wrong = await Qwen3Nvfp4Model.load(path, { threads })
    expect(await wrong.parameter(q)!.read()).not.toEqual(made.values.get(q)!.values)
    // A state says that bitsandbytes wrote the file, whose order is known.
    const stated = bnb4Tensors(way)
    await using sure = await Qwen3Nvfp4Model.load(await writeDat(way, stated), { threads, nibbles: 'low-first' })
    expectSameBytes(await sure.parameter(q)!.read(), stated.values.get(q)!.values)
    const misuse = Qwen3Nvfp4Model.load(path, { nibbles: 'first' as 'low-first' })
    await expect(misuse).rejects.toThrow("Expected 'high-first' | 'low-first' for nibbles but received \"first\"")
  })

  test.each<[string, 'uint8' | 'bfloat16' | 'float32', number[]]>([
    ['flat', 'uint8', [128 * 32]],
    ['as rows', 'uint8', [128, 32]],
    ['the other way round', 'uint8', [1, 128 * 32]],
    ['in a storage of bf16', 'bfloat16', [128 * 16, 1]],
    ['in a storage of fp32', 'float32', [128 * 8, 1]],
  ])('codes may lie %s', async (_, dtype, shape) => {
    const made = bnb4Tensors(way)
    const data = made.tensors.get(q)!.data as Uint8Array
    const words =
      dtype === 'float32' ? new Float32Array(data.buffer) : dtype === 'uint8' ? data : new Uint16Array(data.buffer)
    made.tensors.set(q, { dtype, shape, data: words as Uint8Array })
    await using model = await Qwen3Nvfp4Model.load(await writeDirectory(way, made), { threads })
    expectSameBytes(await model.parameter(q)!.read(), made.values.get(q)!.values)
  })

  test('an embedding and a head in 4 bits run too', async () => {
    const made = encodeModel(way, denseValues(), (name) => /proj|embed/.test(name))
    const path = await writeDat(way, made)
    await using model = await Qwen3Nvfp4Model.load(path, { threads })
    expect(model.parameter('model.embed_tokens.weight')!.storage).toBe('bnb4')
    const dense = await writeValues(temporaryFolder(), made.values)
    expectClose(await logitsOf(path), await logitsOf(dense, { weights: 'fp32' }), 1e-5, 1e-5)
  })

  test('NVFP4 of the same parameter wins, with a warning, and both are kept', async () => {
    const made = bnb4Tensors(way)
    made.tensors.set(`${q}.qdata`, { dtype: 'uint8', shape: [128, 32], data: new Uint8Array(128 * 32).fill(0x22) })
    made.tensors.set(`${q}.scale`, {
      dtype: 'float8_e4m3fn',
      shape: [128, 4],
      data: new Uint8Array(128 * 4).fill(0x38),
    })
    const path = await writeDat(way, made)
    const warnings: CheckpointWarning[] = []
    await using model = await Qwen3Nvfp4Model.load(path, { threads, onWarning: (each) => warnings.push(each) })
    expect(model.parameter(q)!.storage).toBe('nvfp4')
    expect((await model.parameter(q)!.read()).every((value) => value === 1)).toBe(true)
    expect(warnings).toMatchObject([{ code: 'UNUSED_TENSORS', tensors: expect.arrayContaining([q, `${q}.absmax`]) }])
    const saved = join(temporaryFolder(), 'again.dat')
    await model.saveDat(saved)
    expect(readFileSync(saved).equals(readFileSync(path))).toBe(true)
  })

  test('a config of before quant_method, and shards, are read', async () => {
    const { quant_method: _, ...old } = bnb4Quantization(way)
    const made = bnb4Tensors(way)
    const folder = await writeBnb4Directory(temporaryFolder(), made.tensors, old)
    await using reader = await SafetensorsReader.open(join(folder, 'model.safetensors'))
    expect(reader.has(`${q}.quant_state.bitsandbytes__nf4`)).toBe(true)
    expect((await openCheckpoint(folder)).sources.filter(({ bnb4 }) => bnb4)).toHaveLength(14)
  })

  test('zero blocks stay zero, and the encoder of the test is its own inverse', () => {
    const zero = encodeBnb4(new Float32Array(128), { codebook: 'nf4' })
    expect([...zero.absmax, ...zero.values].every((value) => value === 0)).toBe(true)
    expect(zero.codes.every((byte) => byte === 0x77)).toBe(true)
  })

  test('weights of bitsandbytes do not train, and say what to do', async () => {
    await using model = await Qwen3Nvfp4Model.load(await writeDirectory(way), { threads })
    await expect(model.parameter(q)!.write(new Float32Array(128 * 64))).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      message: expect.stringContaining('convert the model to NVFP4'),
    })
  })
})
