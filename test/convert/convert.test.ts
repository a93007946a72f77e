import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  convert,
  DatReader,
  openCheckpoint,
  Qwen3Nvfp4Model,
  SafetensorsReader,
  verify,
  type CheckpointWarning,
  type ConvertOptions,
  type ExportFormat,
} from 'qwen3-nvfp4'
import { packedTensors, writeModel } from '../support/checkpoints'
import { denseConfig, writeDense } from '../support/dense-directory'
import { isaLevels } from '../support/isa-levels'
import { failure, listFolder, temporaryFolder } from '../support/files'
import { decodeNvfp4 } from '../support/nvfp4-directories'

const q = 'model.layers.0.self_attn.q_proj'
const quiet = { onWarning: () => {} }

const json = (...path: string[]) => JSON.parse(readFileSync(join(...path), 'utf8')) as Record<string, unknown>

async function valuesOf(path: string, name: string): Promise<Float32Array> {
  await using model = await Qwen3Nvfp4Model.load(path, { weights: 'fp32', threads: 1, ...quiet })
  return model.parameter(name)!.read()
}

/** From a bf16 directory to `format`, and from there to `back`. */
async function thereAndBack(options: ConvertOptions, back: ConvertOptions) {
  const folder = temporaryFolder()
  const source = await writeDense(join(folder, 'source'))
  const isDat = (options.format ?? 'dat') === 'dat'
  const middle = join(folder, isDat ? 'middle.dat' : 'middle')
  await convert(source, middle, { ...quiet, ...options })
  const end = join(folder, (back.format ?? 'dat') === 'dat' ? 'end.dat' : 'end')
  await convert(middle, end, { ...quiet, ...back })
  return { source, middle, end }
}

describe('convert to a .dat', () => {
  test('of one level gives the prior layout: fp16 raw tensors, u8 codes, E4M3 scales and a head of its own', async () => {
    const folder = temporaryFolder()
    const target = join(folder, 'out', 'model.dat')
    mkdirSync(join(folder, 'out'))
    const { files, bytes, tensors } = await convert(await writeDense(join(folder, 'source')), target, quiet)
    await using reader = await DatReader.open(target)
    expect(bytes).toBe(reader.summary().payloadBytes)
    expect(reader.entry(`${q}.weight.qdata`)).toMatchObject({ elementType: 0, shape: [48, 24] })
    expect(reader.entry(`${q}.weight.scale`)).toMatchObject({ elementType: 101, shape: [48, 3] })
    expect(reader.entry('lm_head.weight.qdata')).toMatchObject({ elementType: 0, shape: [101, 24] })
    expect(reader.entry('model.embed_tokens.weight')).toMatchObject({ elementType: 5, shape: [101, 48] })
    expect(reader.entry('model.norm.weight')).toMatchObject({ elementType: 5, shape: [48] })
    expect(reader.entries).toHaveLength(1 + 2 * (7 * 2 + 4) + 1 + 2)
    expect(listFolder(join(folder, 'out'))).toEqual([
      'config.json',
      'generation_config.json',
      'model.dat',
      'tokenizer.json',
    ])
    expect(files).toEqual(
      ['model.dat', 'config.json', 'tokenizer.json', 'generation_config.json'].map((name) => join(folder, 'out', name)),
    )
    expect(tensors.at(-1)).toMatchObject({ name: 'lm_head.weight', from: 'bf16', to: 'nvfp4', exact: false })
  })

  test('quantises as load does: the same codes and scales', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    for (const scales of ['one-level', 'two-level'] as const) {
      for (const scaleRule of ['amax', 'four-over-six'] as const) {
        const [converted, saved] = [join(folder, `${scales}-${scaleRule}.dat`), join(folder, 'saved.dat')]
        await convert(source, converted, { scales, scaleRule, head: 'tied', denseType: 'bf16', ...quiet })
        await using model = await Qwen3Nvfp4Model.load(source, { scales, scaleRule, embedding: 'as-stored' })
        await model.saveDat(saved)
        expect(await verify(converted, saved, { by: 'bits' })).toMatchObject({ equal: true, compared: 24 })
      }
    }
  })

  test('reports the error that an independent calculation finds, smaller with four-over-six', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    const name = `${q}.weight`
    const before = await valuesOf(source, name)
    const errors: number[] = []
    for (const scaleRule of ['amax', 'four-over-six'] as const) {
      const target = join(folder, `${scaleRule}.dat`)
      const { tensors } = await convert(source, target, { scales: 'two-level', scaleRule, ...quiet })
      const after = await valuesOf(target, name)
      const difference = before.map((value, i) => after[i]! - value)
      const squares = (values: Float32Array) => values.reduce((sum, value) => sum + value ** 2, 0)
      const report = tensors.find((tensor) => tensor.name === name)!
      expect(report.relativeRmsError).toBeCloseTo(Math.sqrt(squares(difference) / squares(before)), 10)
      expect(report.largestError).toBe(difference.reduce((most, each) => Math.max(most, Math.abs(each)), 0))
      errors.push(report.relativeRmsError)
    }
    expect(errors[1]!).toBeLessThan(errors[0]!)
    expect(errors[0]!).toBeLessThan(0.12)
  })

  test('warns of one-level scales that lose bits, and counts them', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'), { sigma: 0.002 })
    const warnings: CheckpointWarning[] = []
    const onWarning = (warning: CheckpointWarning) => void warnings.push(warning)
    const one = await convert(source, join(folder, 'one.dat'), { onWarning })
    const two = await convert(source, join(folder, 'two.dat'), { scales: 'two-level', onWarning })
    const share = ({ tensors }: typeof one) => tensors.find(({ name }) => name === `${q}.weight`)!.subnormalScales
    expect(share(one)).toBe(1)
    expect(share(two)).toBeLessThan(0.01)
    expect(warnings).toMatchObject([{ code: 'SUBNORMAL_SCALES', message: expect.stringContaining('two-level') }])
    expect(warnings[0]!.tensors).toContain(`${q}.weight`)
  })

  test('leaves modules dense that patterns name', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    const dense = ['layers.0.', 'model.layers.*.v_proj', /up_proj$/]
    const { tensors } = await convert(source, join(folder, 'a.dat'), { dense, denseType: 'as-stored', ...quiet })
    const to = new Map(tensors.map(({ name, to }) => [name.slice('model.layers.'.length), to]))
    expect(to.get('0.self_attn.q_proj.weight')).toBe('bf16')
    expect(to.get('1.self_attn.q_proj.weight')).toBe('nvfp4')
    expect(to.get('1.self_attn.v_proj.weight')).toBe('bf16')
    expect(to.get('1.mlp.up_proj.weight')).toBe('bf16')
    expect(to.get('1.mlp.gate_proj.weight')).toBe('nvfp4')
  })

  test('gives the same bytes and errors with every instruction set', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    const before = process.env['QN_ISA']
    try {
      for (const options of [
        {},
        { scales: 'two-level', scaleRule: 'four-over-six' },
        { weights: 'fp16' },
      ] satisfies ConvertOptions[]) {
        const made = []
        for (const isa of isaLevels) {
          process.env['QN_ISA'] = isa
          const target = join(folder, `${isa}.dat`)
          const { tensors } = await convert(source, target, { ...options, ...quiet })
          made.push({ bytes: readFileSync(target), tensors })
        }
        for (const { bytes, tensors } of made) {
          expect(bytes.equals(made[0]!.bytes)).toBe(true)
          expect(tensors).toEqual(made[0]!.tensors)
        }
      }
    } finally {
      if (before === undefined) delete process.env['QN_ISA']
      else process.env['QN_ISA'] = before
    }
  })

  test('gives the same bytes with any number of threads, and over an older file', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    const [one, two] = [join(folder, 'one.dat'), join(folder, 'two.dat')]
    const reports = []
    for (const [target, threads] of [
      [one, 1],
      [two, 3],
    ] as const) {
      writeFileSync(target, 'older')
      reports.push((await convert(source, target, { threads, ...quiet })).tensors)
    }
    expect(readFileSync(one).equals(readFileSync(two))).toBe(true)
    expect(reports[0]).toEqual(reports[1])
  })
})

describe('convert there and back', () => {
  const exact: [string, ConvertOptions, ConvertOptions][] = [
    ['bf16 directory, dense .dat', { format: 'dat', weights: 'bf16' }, { format: 'hf-bf16' }],
    ['fp32 .dat', { format: 'dat', weights: 'fp32' }, { format: 'hf-bf16' }],
    ['fp32 directory', { format: 'hf-fp32' }, { format: 'hf-bf16' }],
  ]
  test.each(exact)('%s: every bf16 value comes back', async (_, there, back) => {
    const { source, end } = await thereAndBack(there, back)
    expect(await verify(source, end, { by: 'bits' })).toEqual({ equal: true, compared: 24, differences: [] })
  })

  test.each<[ExportFormat, ExportFormat]>([
    ['dat', 'modelopt'],
    ['modelopt', 'dat'],
    ['compressed-tensors', 'dat'],
    ['modelopt', 'compressed-tensors'],
    ['compressed-tensors', 'modelopt'],
  ])('NVFP4 in %s stays bit for bit in %s', async (there, back) => {
    const scales = (format: ExportFormat) =>
      format === 'dat' ? ({ scales: 'two-level', denseType: 'bf16' } as const) : {}
    const { middle, end } = await thereAndBack({ format: there, ...scales(there) }, { format: back, ...scales(back) })
    expect(await verify(middle, end, { by: 'bits' })).toEqual({ equal: true, compared: 24, differences: [] })
    expect((await verify(middle, end)).equal).toBe(true)
  })

  test('one level in, two levels out: the same values, and one level again', async () => {
    const folder = temporaryFolder()
    const source = await writeModel(folder, packedTensors({ rawType: 15 }))
    const [middle, end] = [join(folder, 'middle'), join(folder, 'end.dat')]
    await convert(source, middle, { format: 'compressed-tensors', ...quiet })
    await convert(middle, end, { denseType: 'bf16', ...quiet })
    const { differences } = await verify(source, end, { by: 'bits' })
    // The head is dense in the middle, exactly, and is quantised anew.
    expect(differences.map(({ name }) => name).filter((name) => name !== 'lm_head.weight')).toEqual([])
    expect(await verify(source, middle)).toMatchObject({ equal: true })
  })

  test('two levels are folded into one only when asked to, with the error', async () => {
    const folder = temporaryFolder()
    const source = await writeModel(folder, packedTensors({ rawType: 15, globalScale: 2 ** -4 }))
    const refused = await failure(convert(source, join(folder, 'one.dat'), quiet))
    expect(refused).toMatchObject({
      code: 'SAVE_LAYOUT_MISMATCH',
      message: expect.stringMatching(/15 tensors.*requantize: true/),
    })
    expect(existsSync(join(folder, 'one.dat'))).toBe(false)
    const { tensors } = await convert(source, join(folder, 'one.dat'), { requantize: true, ...quiet })
    const report = tensors.find(({ name }) => name === `${q}.weight`)!
    expect(report).toMatchObject({ from: 'nvfp4', to: 'nvfp4' })
    const { differences } = await verify(source, join(folder, 'one.dat'))
    const found = differences.find(({ name }) => name === `${q}.weight`)
    expect(report.relativeRmsError).toBe(found?.relativeRmsDifference ?? 0)
    await using reader = await DatReader.open(join(folder, 'one.dat'))
    expect(reader.has(`${q}.weight.scale_2`)).toBe(false)
  })

  test('a global scale that is no power of two goes through its reciprocal', async () => {
    const folder = temporaryFolder()
    for (const globalScale of [3e-5, 1 / 3, 0.7, 1.9999999]) {
      const source = await writeModel(folder, packedTensors({ rawType: 15, globalScale: Math.fround(globalScale) }))
      const target = join(folder, `ct-${globalScale}`)
      const { tensors } = await convert(source, target, { format: 'compressed-tensors', ...quiet })
      const report = tensors.find(({ name }) => name === `${q}.weight`)!
      const back = (await openCheckpoint(target)).sources.find(({ parameter }) => parameter === `${q}.weight`)!
      const error = Math.abs(back.globalScale! - Math.fround(globalScale)) / globalScale
      expect(report.exact).toBe(error === 0)
      expect(report.relativeRmsError).toBeCloseTo(error, 9)
      expect(error).toBeLessThan(1.2e-7)
    }
  })

  test('a residual stays in two levels, becomes part of dense values, and is refused elsewhere', async () => {
    const folder = temporaryFolder()
    const trained = join(folder, 'trained.dat')
    await using model = await Qwen3Nvfp4Model.initialize(denseConfig, { seed: 3, threads: 1 })
    const optimizer = model.createOptimizer({ weights: 'nvfp4+residual', lr: 1e-2 })
    await optimizer.trainStep({ ids: [5, 6, 7], labels: [5, 6, 7] })
    await model.saveDat(trained)
    const kept = join(folder, 'kept.dat')
    await convert(trained, kept, { scales: 'two-level', ...quiet })
    expect(await verify(trained, kept, { by: 'bits' })).toMatchObject({ equal: true })
    await convert(trained, join(folder, 'dense'), { format: 'hf-fp32', ...quiet })
    expect(await verify(trained, join(folder, 'dense'))).toMatchObject({ equal: true })
    expect(await failure(convert(trained, join(folder, 'mo'), { format: 'modelopt', ...quiet }))).toMatchObject({
      code: 'SAVE_LAYOUT_MISMATCH',
    })
    const { tensors } = await convert(trained, join(folder, 'mo'), { format: 'modelopt', requantize: true, ...quiet })
    expect(tensors.find(({ name }) => name === `${q}.weight`)!.relativeRmsError).toBeGreaterThan(0)
  })
})

describe('convert to a directory', () => {
  test.each(['modelopt', 'compressed-tensors'] as const)('of %s writes what its loaders ask for', async (format) => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    const target = join(folder, 'out')
    await convert(source, target, { format, dense: ['layers.1.mlp.down_proj'], ...quiet })
    const config = json(target, 'config.json')
    expect(config).toMatchObject({ torch_dtype: 'bfloat16', initializer_range: 0.02, tie_word_embeddings: true })
    const ignored = ['lm_head', 'model.layers.1.mlp.down_proj']
    expect(config['quantization_config']).toMatchObject({ quant_method: format, ignore: ignored })
    if (format === 'modelopt') {
      expect(json(target, 'hf_quant_config.json')).toEqual({
        producer: { name: 'modelopt', version: 'qwen3-nvfp4' },
        quantization: {
          quant_algo: 'W4A16_NVFP4',
          kv_cache_quant_algo: null,
          group_size: 16,
          exclude_modules: ignored,
        },
      })
    }
    expect(json(target, 'generation_config.json')).toEqual({ eos_token_id: [2, 3], temperature: 0.6 })
    expect(readFileSync(join(target, 'tokenizer.json'), 'utf8')).toBe('{"made": "up"}')

    await using reader = await SafetensorsReader.open(join(target, 'model.safetensors'))
    expect(reader.metadata).toEqual({ format: 'pt' })
    const [codes, global] =
      format === 'modelopt' ? ['weight', 'weight_scale_2'] : ['weight_packed', 'weight_global_scale']
    expect(reader.entry(`${q}.${codes}`)).toMatchObject({ dtype: 'uint8', shape: [48, 24] })
    expect(reader.entry(`${q}.weight_scale`)).toMatchObject({ dtype: 'float8_e4m3fn', shape: [48, 3] })
    expect(reader.entry(`${q}.${global}`)).toMatchObject({ dtype: 'float32', shape: format === 'modelopt' ? [] : [1] })
    expect(reader.entry('model.embed_tokens.weight').dtype).toBe('bfloat16')
    expect(reader.has('lm_head.weight')).toBe(false)
    const width = { float32: 4, bfloat16: 2, float8_e4m3fn: 1, uint8: 1 } as Record<string, number>
    for (const { offset, dtype } of reader.entries) expect(offset % width[dtype]!).toBe(0)

    // The values by an independent decoder are those that this library runs.
    const scale = new DataView((await reader.readBytes(`${q}.${global}`)).buffer).getFloat32(0, true)
    const decoded = decodeNvfp4(
      await reader.readBytes(`${q}.${codes}`),
      await reader.readBytes(`${q}.weight_scale`),
      48,
      format === 'modelopt' ? { factor: scale } : { divisor: scale },
    )
    expect(await valuesOf(target, `${q}.weight`)).toEqual(decoded)
  })

  test('gives q, k and v one global scale, and gate and up, as runtimes fuse them', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    await convert(source, join(folder, 'out'), { format: 'modelopt', ...quiet })
    const { sources } = await openCheckpoint(join(folder, 'out'))
    const scaleOf = (name: string) =>
      sources.find(({ parameter }) => parameter === `model.layers.0.${name}.weight`)!.globalScale
    expect(scaleOf('self_attn.k_proj')).toBe(scaleOf('self_attn.q_proj'))
    expect(scaleOf('self_attn.v_proj')).toBe(scaleOf('self_attn.q_proj'))
    expect(scaleOf('mlp.up_proj')).toBe(scaleOf('mlp.gate_proj'))
    // Scales that are kept may differ, which is said.
    await convert(source, join(folder, 'apart.dat'), { scales: 'two-level', ...quiet })
    const warnings: CheckpointWarning[] = []
    const onWarning = (warning: CheckpointWarning) => void warnings.push(warning)
    await convert(join(folder, 'apart.dat'), join(folder, 'kept'), { format: 'modelopt', onWarning })
    expect(warnings).toMatchObject([{ code: 'UNEQUAL_GLOBAL_SCALES' }])
  })

  test('is sharded above a size, with an index of every tensor', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    const { files, bytes } = await convert(source, join(folder, 'out'), {
      format: 'hf-bf16',
      shardBytes: 20_000,
      ...quiet,
    })
    const names = listFolder(join(folder, 'out')).filter((name) => name.endsWith('.safetensors'))
    expect(names).toEqual(names.map((_, i) => `model-0000${i + 1}-of-0000${names.length}.safetensors`))
    expect(names.length).toBeGreaterThan(2)
    expect(files.slice(0, names.length)).toEqual(names.map((name) => join(folder, 'out', name)))
    const index = json(join(folder, 'out'), 'model.safetensors.index.json')
    expect(index['metadata']).toEqual({ total_size: bytes })
    expect(Object.keys(index['weight_map'] as object)).toHaveLength(24)
    expect(await verify(source, join(folder, 'out'), { by: 'bits' })).toMatchObject({ equal: true })
  })
})
