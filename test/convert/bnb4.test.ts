/** bitsandbytes checkpoints in: what they become in every other format, and what inspect and verify say of them. */
import { join } from 'node:path'
import { convert, exportCheckpoint, inspect, Qwen3Nvfp4Model, verify, type ExportFormat } from 'qwen3-nvfp4'
import {
  bnb4Quantization,
  bnb4Tensors,
  encodeModel,
  writeBnb4Dat,
  writeBnb4Directory,
  writeValues,
  type Bnb4Way,
  type DenseTensor,
} from '../support/bnb4-files'
import { temporaryFolder } from '../support/files'
import { describeCheckpoints } from '../support/hf-parity'

const q = 'model.layers.0.self_attn.q_proj.weight'
const quiet = { onWarning: () => {} }
const twice: Bnb4Way = { codebook: 'nf4', nested: true }

const made = bnb4Tensors(twice)
const writeDirectory = (way = twice, { tensors } = made) =>
  writeBnb4Directory(join(temporaryFolder(), 'bnb'), tensors, bnb4Quantization(way))

describe('convert', () => {
  test('to fp32 keeps every value of every way, in a directory and in a .dat', async () => {
    for (const codebook of ['nf4', 'fp4'] as const) {
      for (const nested of [false, true]) {
        const way = { codebook, nested }
        const tensors = bnb4Tensors(way)
        const folder = temporaryFolder()
        const wanted = await writeValues(join(folder, 'values'), tensors.values)
        const source = await writeDirectory(way, tensors)
        const [target, dat] = [join(folder, 'out'), join(folder, 'out.dat')]
        const { tensors: reports } = await convert(source, target, { format: 'hf-fp32', ...quiet })
        expect(reports.every(({ exact }) => exact)).toBe(true)
        expect(reports.find(({ name }) => name === q)).toMatchObject({ from: 'bnb4', to: 'fp32', largestError: 0 })
        expect(await verify(wanted, target, { by: 'bits' })).toMatchObject({ equal: true })
        await convert(source, dat, { weights: 'fp32', ...quiet })
        expect(await verify(wanted, dat, { by: 'bits' })).toMatchObject({ equal: true })
      }
    }
  })

  test('to NVFP4 is what the decoded values become, and reports its error against them', async () => {
    const folder = temporaryFolder()
    const source = await writeDirectory()
    const values = await writeValues(join(folder, 'values'), made.values)
    const targets: [ExportFormat, string][] = [
      ['dat', 'x.dat'],
      ['modelopt', 'modelopt'],
      ['compressed-tensors', 'tensors'],
      ['gguf', 'x.gguf'],
    ]
    for (const [format, name] of targets) {
      const [ours, wanted] = [join(folder, name), join(folder, `wanted-${name}`)]
      const { tensors } = await convert(source, ours, { format, ...quiet })
      const dense = await convert(values, wanted, { format, ...quiet })
      expect(await verify(ours, wanted, { by: 'bits' })).toMatchObject({ equal: true })
      const report = tensors.find(({ name }) => name === q)!
      expect(report).toEqual({ ...dense.tensors.find(({ name }) => name === q)!, from: 'bnb4' })
      expect(report.relativeRmsError).toBeGreaterThan(0.02)
      expect(report.relativeRmsError).toBeLessThan(0.15)
    }
  })

  test.each(['hf-bf16', 'hf-fp16'] as const)('to %s rounds once', async (format) => {
    const folder = temporaryFolder()
    const { tensors } = await convert(await writeDirectory(), join(folder, 'x'), { format, ...quiet })
    const { relativeRmsError } = tensors.find(({ name }) => name === q)!
    expect(relativeRmsError).toBeGreaterThan(0)
    expect(relativeRmsError).toBeLessThan(format === 'hf-bf16' ? 2 ** -9 : 2 ** -11)
  })

  test('modules that stay dense beside NVFP4 are fp32, where the file keeps what was stored', async () => {
    const target = join(temporaryFolder(), 'x.dat')
    const { tensors } = await convert(await writeDirectory(), target, { scales: 'two-level', dense: ['q_proj'] })
    expect(tensors.find(({ name }) => name === q)).toMatchObject({ to: 'fp32', exact: true })
  })

  test('a file without states is read with its nibbles as they are said to be', async () => {
    const low = bnb4Tensors({ codebook: 'fp4', nibbles: 'low-first', state: false })
    const folder = temporaryFolder()
    const source = await writeBnb4Dat(join(folder, 'low.dat'), low.tensors)
    const values = await writeValues(join(folder, 'values'), low.values)
    await convert(source, join(folder, 'x.dat'), { weights: 'fp32', nibbles: 'low-first', ...quiet })
    expect(await verify(values, join(folder, 'x.dat'))).toMatchObject({ equal: true })
    expect(await verify(values, source, { nibbles: 'low-first' })).toMatchObject({ equal: true })
    expect(await verify(values, source)).toMatchObject({ equal: false })
  })

  test('a model in memory is exported with its values', async () => {
    const folder = temporaryFolder()
    await using model = await Qwen3Nvfp4Model.load(await writeDirectory(), { threads: 2 })
    await exportCheckpoint(model, join(folder, 'out'), { format: 'hf-fp32', ...quiet })
    const values = await writeValues(join(folder, 'values'), made.values)
    expect(await verify(values, join(folder, 'out'), { by: 'bits' })).toMatchObject({ equal: true })
  })
})

describe('verify', () => {
  test('finds the same values in safetensors, in a .dat with absmax of its own, and in fp32', async () => {
    const folder = temporaryFolder()
    const [source, values] = [await writeDirectory(), await writeValues(join(folder, 'values'), made.values)]
    await using model = await Qwen3Nvfp4Model.load(source, { threads: 2 })
    const saved = join(folder, 'saved.dat')
    await model.saveDat(saved)
    for (const [a, b] of [
      [source, values],
      [source, saved],
      [saved, values],
    ] as const) {
      expect(await verify(a, b)).toMatchObject({ equal: true, differences: [] })
    }
    // The same numbers, and not the same bytes.
    const { differences } = await verify(source, saved, { by: 'bits' })
    expect(differences).toHaveLength(14)
    expect(differences[0]).toMatchObject({ kind: 'storage', message: expect.stringMatching(/^nf4 .* 64, of 256 and/) })
  })

  test('by bits compares codes and absmax, whatever the files call them', async () => {
    const way: Bnb4Way = { codebook: 'nf4' }
    const one = bnb4Tensors(way)
    const folder = temporaryFolder()
    const [a, b] = [await writeDirectory(way, one), join(folder, 'b.dat')]
    await writeBnb4Dat(b, one.tensors)
    expect(await verify(a, b, { by: 'bits' })).toMatchObject({ equal: true, compared: 24 })
    const absmax = one.tensors.get(`${q}.absmax`)!.data as Float32Array
    absmax[3]! *= 2
    await writeBnb4Dat(b, one.tensors)
    expect((await verify(a, b, { by: 'bits' })).differences).toEqual([
      { name: q, kind: 'bits', message: 'absmax differ from byte 14 on' },
    ])
    const [difference] = (await verify(a, b)).differences
    expect(difference).toMatchObject({ name: q, kind: 'values' })
    expect(difference!.different).toBeLessThanOrEqual(64)
  })
})

describe('inspect', () => {
  test('knows every tensor of a directory and of a .dat', async () => {
    const dat = await writeBnb4Dat(join(temporaryFolder(), 'x-4bit.nf4.dat'), made.tensors)
    for (const [path, format] of [
      [await writeDirectory(), 'bitsandbytes'],
      [dat, 'dat'],
    ] as const) {
      const found = await inspect(path)
      expect(found).toMatchObject({ format, missing: [], unexpected: [], ignored: [], problems: [] })
      expect(found.tensors.every(({ parameter }) => parameter !== undefined)).toBe(true)
      const parts = found.tensors.filter(({ parameter }) => parameter === q).map(({ part }) => part)
      expect(parts.sort()).toEqual(['absmax', 'codes', 'nestedAbsmax', 'nestedQuantMap', 'quantMap', 'quantState'])
    }
  })

  test('says what is missing, unexpected and wrong', async () => {
    const tensors = new Map(made.tensors)
    tensors.delete(`${q}.nested_absmax`)
    tensors.set('extra', { dtype: 'uint8', shape: [1], data: Uint8Array.of(1) })
    tensors.set(`${q}.absmax`, { dtype: 'uint8', shape: [7], data: new Uint8Array(7) })
    const found = await inspect(await writeBnb4Directory(temporaryFolder(), tensors, bnb4Quantization(twice)))
    expect(found.missing).toEqual([`${q}.nested_absmax`])
    expect(found.unexpected).toEqual(['extra'])
    expect(found.problems).toEqual([expect.stringContaining(`${q}.absmax but received uint8[7]`)])
    const map = new Map(made.tensors)
    const table = Float32Array.from({ length: 16 }, (_, i) => i / 15)
    map.set(`${q}.quant_map`, { dtype: 'float32', shape: [16], data: table })
    const other = await inspect(await writeBnb4Directory(temporaryFolder(), map, bnb4Quantization(twice)))
    expect(other.problems).toEqual([expect.stringContaining('Expected the table of nf4 or of fp4')])
  })
})

describeCheckpoints('convert a save of Hugging Face in 4 bits:', ({ folder }) => {
  test('rows that are no whole blocks convert; they load as they are only where they are', async () => {
    await using dense = await Qwen3Nvfp4Model.load(folder, { weights: 'fp32', threads: 2 })
    const values = new Map<string, DenseTensor>()
    for (const { name, shape } of dense.parameters()) {
      values.set(name, { shape: [...shape], values: await dense.parameter(name)!.read() })
    }
    const { config } = dense
    for (const way of [twice, { codebook: 'fp4', blockSize: 128 }] as const) {
      const encoded = encodeModel(way, values)
      const made = temporaryFolder()
      const source = await writeBnb4Directory(join(made, 'bnb'), encoded.tensors, bnb4Quantization(way), config)
      const wanted = await writeValues(join(made, 'values'), encoded.values, config)
      await convert(source, join(made, 'fp32'), { format: 'hf-fp32', ...quiet })
      expect(await verify(wanted, join(made, 'fp32'), { by: 'bits' })).toMatchObject({ equal: true })
      const { tensors } = await convert(source, join(made, 'nvfp4.dat'), { scales: 'two-level', ...quiet })
      for (const { from, to, relativeRmsError } of tensors) {
        if (from === 'bnb4' && to === 'nvfp4') expect(relativeRmsError).toBeLessThan(0.15)
      }
      const ids = [3, 1, 4, 1, 5, 9]
      const load = (path: string, weights?: 'fp32') => Qwen3Nvfp4Model.load(path, { threads: 2, weights, ...quiet })
      const odd = [...values].find(([name, { shape }]) => name.includes('_proj') && shape[1]! % 64 !== 0)!
      await expect(load(source)).rejects.toMatchObject({
        code: 'UNSUPPORTED',
        key: odd[0],
        message: expect.stringContaining(`rows of ${odd[1].shape[1]} columns`),
      })
      await using ours = await load(source, 'fp32')
      await using theirs = await load(wanted, 'fp32')
      const logits = async (model: Qwen3Nvfp4Model) => (await model.forward(ids)).logits!.toFloat32Array()
      expect(await logits(ours)).toEqual(await logits(theirs))
    }
  })

  test('what has whole blocks in 4 bits, and the rest dense, runs as the values do', async () => {
    await using dense = await Qwen3Nvfp4Model.load(folder, { weights: 'fp32', threads: 2 })
    const values = new Map<string, DenseTensor>()
    for (const { name, shape } of dense.parameters()) {
      values.set(name, { shape: [...shape], values: await dense.parameter(name)!.read() })
    }
    const whole = (name: string) => name.includes('_proj') && values.get(name)!.shape[1]! % 64 === 0
    const encoded = encodeModel(twice, values, whole)
    const made = temporaryFolder()
    const source = await writeBnb4Directory(join(made, 'bnb'), encoded.tensors, bnb4Quantization(twice), dense.config)
    const wanted = await writeValues(join(made, 'values'), encoded.values, dense.config)
    await using ours = await Qwen3Nvfp4Model.load(source, { threads: 2 })
    await using theirs = await Qwen3Nvfp4Model.load(wanted, { threads: 2, weights: 'fp32' })
    expect([...ours.parameters()].some(({ storage }) => storage === 'bnb4')).toBe(true)
    const logits = async (model: Qwen3Nvfp4Model) => (await model.forward([3, 1, 4, 1, 5])).logits!.toFloat32Array()
    const [a, b] = [await logits(ours), await logits(theirs)]
    const largest = Math.max(...b.map(Math.abs))
    for (const [i, value] of a.entries()) expect(Math.abs(value - b[i]!)).toBeLessThan(1e-5 * largest)
  })
})
