import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { openCheckpoint, SafetensorsReader, toConfigJson, writeSafetensors } from 'qwen3-nvfp4'
import { packedTensors, tinyConfig, writeModel, type PackedOptions } from '../support/checkpoints'
import { describeWithShared, sharedPath, temporaryFolder } from '../support/files'

const write = (options: PackedOptions = {}) => writeModel(temporaryFolder(), packedTensors(options), options.config)

describe('openCheckpoint of a .dat', () => {
  const spellings: [string, PackedOptions, object][] = [
    ['the prior layout', {}, { codes: { dtype: 'u8' }, scales: { dtype: 'e4m3' }, globalScale: 1, twoLevel: false }],
    ['keys without .weight', { spelling: '' }, { codes: { dtype: 'u8' }, scales: { dtype: 'e4m3' } }],
    [
      'codes of id 1, scales of id 0',
      { codesType: 1, scalesType: 0 },
      { codes: { dtype: 'u8' }, scales: { dtype: 'e4m3' } },
    ],
    [
      'codes of id 100, scales of id 1',
      { codesType: 100, scalesType: 1 },
      { codes: { dtype: 'u8' }, scales: { dtype: 'e4m3' } },
    ],
    ['fp16 scales', { scalesType: 5 }, { scales: { dtype: 'f16' } }],
    ['fp32 scales', { scalesType: 6 }, { scales: { dtype: 'f32' } }],
    ['a global scale', { globalScale: 0.25 }, { globalScale: 0.25, twoLevel: true }],
    [
      'a global scale without .weight',
      { globalScale: 3e-5, spelling: '' },
      { globalScale: Math.fround(3e-5), twoLevel: true },
    ],
  ]
  test.each(spellings)('finds every parameter of %s', async (name, options, expected) => {
    const path = await write(options)
    const { sources, files, config } = await openCheckpoint(path)
    expect(files).toEqual([path])
    expect(config).toEqual(tinyConfig)
    expect(sources).toHaveLength(1 + 2 * 11 + 2)
    expect(sources.find(({ parameter }) => parameter === 'model.layers.1.mlp.down_proj.weight')).toMatchObject(expected)
    expect(sources[0]).toMatchObject({ parameter: 'model.embed_tokens.weight', values: { dtype: 'f16' } })
  })

  test('gives ranges that hold exactly the payload', async () => {
    const path = await write()
    const { sources } = await openCheckpoint(path)
    const source = sources.find(({ parameter }) => parameter === 'lm_head.weight')!
    const { offset, bytes } = source.codes!
    expect(readFileSync(path).subarray(offset, offset + bytes)).toEqual(
      Buffer.from(packedTensors().get('lm_head.weight.qdata')!.data as Uint8Array),
    )
  })

  test('is untied when it has a head, whatever the configuration says, and tied when it has none', async () => {
    const folder = temporaryFolder()
    const path = await writeModel(folder, packedTensors(), { ...tinyConfig, tieWordEmbeddings: true })
    expect((await openCheckpoint(path)).config.tieWordEmbeddings).toBe(false)
    const tied = { ...tinyConfig, tieWordEmbeddings: true }
    const headless = await openCheckpoint(await write({ config: tied }))
    expect(headless.config.tieWordEmbeddings).toBe(true)
    expect(headless.sources.at(-1)!.parameter).toBe('model.norm.weight')
  })

  test('takes its configuration from the option, modelDir, its own file, or the folder, in this order', async () => {
    const folder = temporaryFolder()
    const path = await writeModel(folder, packedTensors())
    const eps = async (options?: object) => (await openCheckpoint(path, options)).config.rmsNormEps
    expect(await eps()).toBe(1e-6)
    writeFileSync(join(folder, 'model.config.json'), JSON.stringify(toConfigJson({ ...tinyConfig, rmsNormEps: 1e-5 })))
    expect(await eps()).toBe(1e-5)
    mkdirSync(join(folder, 'dir'))
    writeFileSync(join(folder, 'dir', 'config.json'), JSON.stringify(toConfigJson({ ...tinyConfig, rmsNormEps: 1e-4 })))
    expect(await eps({ modelDir: join(folder, 'dir') })).toBe(1e-4)
    expect(await eps({ modelDir: join(folder, 'dir'), config: { ...tinyConfig, rmsNormEps: 1e-3 } })).toBe(1e-3)
  })

  test('without a configuration says where it looked', async () => {
    const path = await write()
    const folder = temporaryFolder()
    copyFileSync(path, join(folder, 'alone.dat'))
    await expect(openCheckpoint(join(folder, 'alone.dat'))).rejects.toMatchObject({
      code: 'CONFIG_NOT_FOUND',
      message: expect.stringMatching(/alone\.config\.json and .*config\.json; pass modelDir or config/),
    })
  })

  test('refuses missing tensors and lists 20 of them at most', async () => {
    const tensors = packedTensors()
    tensors.delete('model.norm.weight')
    tensors.delete('lm_head.weight.scale')
    await expect(openCheckpoint(await writeModel(temporaryFolder(), tensors))).rejects.toMatchObject({
      code: 'CHECKPOINT_MISSING_TENSORS',
      message: expect.stringMatching(/lacks 2 tensors \(model\.norm\.weight, lm_head\.weight\.scale\)/),
    })
    for (const key of tensors.keys()) if (key.startsWith('model.layers.')) tensors.delete(key)
    const error = await openCheckpoint(await writeModel(temporaryFolder(), tensors)).catch((caught: Error) => caught)
    expect((error as Error).message).toMatch(/lacks 24 tensors \(.* and 4 more\)/)
  })

  test('refuses a residual without its scales, its codes or the global scale that its own is an eighth of', async () => {
    const key = 'lm_head.weight'
    const cases = [
      [0.5, 'residual.scale', 'residual.qdata'],
      [0.5, 'residual.qdata', 'residual.scale'],
      [undefined, 'scale_2', undefined],
    ] as const
    for (const [globalScale, absent, left] of cases) {
      const tensors = packedTensors({ globalScale })
      if (left !== 'residual.scale')
        tensors.set(`${key}.residual.qdata`, { elementType: 0, shape: [40, 16], data: new Uint8Array(640) })
      if (left !== 'residual.qdata')
        tensors.set(`${key}.residual.scale`, { elementType: 101, shape: [40, 2], data: new Uint8Array(80) })
      await expect(openCheckpoint(await writeModel(temporaryFolder(), tensors))).rejects.toMatchObject({
        code: 'CHECKPOINT_MISSING_TENSORS',
        key: `${key}.${absent}`,
      })
    }
    const tensors = packedTensors()
    tensors.set('model.norm.weight.residual.scale', { elementType: 101, shape: [1], data: new Uint8Array(1) })
    await expect(openCheckpoint(await writeModel(temporaryFolder(), tensors))).rejects.toMatchObject({
      code: 'CHECKPOINT_UNEXPECTED_TENSORS',
    })
  })

  test.each([
    ['extra.buffer', false],
    ['model.layers.0.self_attn.rotary_emb.inv_freq', false],
    ['model.layers.0.self_attn.q_proj.bias', true],
    ['model.layers.9.input_layernorm.weight', true],
    ['lm_head.bias', true],
  ])('keeps and warns of %s, which the model does not use, or refuses it: %s', async (key, isOfModel) => {
    const tensors = packedTensors()
    tensors.set(key, { elementType: 4, shape: [2], data: BigInt64Array.of(1n, 2n) })
    const path = await writeModel(temporaryFolder(), tensors)
    const refusal = { code: 'CHECKPOINT_UNEXPECTED_TENSORS', key }
    const kept = { key, elementType: 4, shape: [2], file: path }
    await expect(openCheckpoint(path, { strict: true })).rejects.toMatchObject(refusal)
    for (const strict of isOfModel ? [false] : [false, undefined]) {
      const { layout, warnings } = await openCheckpoint(path, { strict })
      expect(layout.entries.at(-1)).toEqual(kept)
      expect(warnings).toMatchObject([{ code: 'UNUSED_TENSORS', tensors: [key] }])
    }
    if (isOfModel) await expect(openCheckpoint(path)).rejects.toMatchObject(refusal)
  })

  test('refuses shapes that contradict the configuration, with both', async () => {
    const path = await write()
    const config = { ...tinyConfig, intermediateSize: 64 }
    await expect(openCheckpoint(path, { config })).rejects.toMatchObject({
      code: 'CHECKPOINT_SHAPE_MISMATCH',
      key: 'model.layers.0.mlp.gate_proj.weight.qdata',
      message: expect.stringMatching(
        /Expected \[64, 16\] of parameter \[64, 32\] for .* but received \[48, 16\]; inspect lists it and \d+ more$/,
      ),
    })
    const tensors = packedTensors()
    tensors.set('model.norm.weight', { elementType: 5, shape: [1, 32], data: new Uint16Array(32) })
    await expect(openCheckpoint(await writeModel(temporaryFolder(), tensors))).rejects.toMatchObject({
      key: 'model.norm.weight',
      message: expect.stringMatching(
        /Expected \[32\] by the configuration for model.norm.weight but received \[1, 32\]$/,
      ),
    })
    const wrongScale = packedTensors()
    wrongScale.set('lm_head.weight.scale', { elementType: 101, shape: [40, 4], data: new Uint8Array(160) })
    await expect(openCheckpoint(await writeModel(temporaryFolder(), wrongScale))).rejects.toMatchObject({
      code: 'CHECKPOINT_SHAPE_MISMATCH',
      key: 'lm_head.weight.scale',
    })
  })

  test('refuses element types that a weight cannot have: int32 is never taken for fp32', async () => {
    for (const [key, elementType, data] of [
      ['model.norm.weight', 3, new Int32Array(32)],
      ['model.norm.weight', 7, new Float64Array(32)],
      ['lm_head.weight.qdata', 101, new Uint8Array(640)],
      ['lm_head.weight.scale', 15, new Uint16Array(80)],
    ] as const) {
      const tensors = packedTensors()
      tensors.set(key, { ...tensors.get(key)!, elementType, data })
      const opening = openCheckpoint(await writeModel(temporaryFolder(), tensors))
      await expect(opening).rejects.toMatchObject({ code: 'CHECKPOINT_UNSUPPORTED_TYPE', key })
    }
  })

  test.each([0, -1, NaN, Infinity])('refuses a global scale of %p', async (globalScale) => {
    await expect(openCheckpoint(await write({ globalScale }))).rejects.toMatchObject({ code: 'CHECKPOINT_BAD_SCALE' })
  })

  test('refuses misuse and stops with the reason of the signal', async () => {
    const path = await write()
    await expect(openCheckpoint(7 as never)).rejects.toThrow(/path/)
    await expect(openCheckpoint(path, { strict: 1 as never })).rejects.toThrow(/strict/)
    await expect(openCheckpoint(path, { config: { hiddenSize: 1 } as never })).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
    })
    await expect(openCheckpoint(path, { signal: AbortSignal.abort(new Error('stop')) })).rejects.toThrow('stop')
    await expect(openCheckpoint(`${path}.not`)).rejects.toMatchObject({ code: 'IO_FAILED' })
  })
})

describe('openCheckpoint of a Hugging Face directory', () => {
  const tied = { ...tinyConfig, tieWordEmbeddings: true }

  /** The tensors of a dense model, as fp32 zeros. */
  const dense = () =>
    new Map(
      [...packedTensors({ config: tied })]
        .filter(([key]) => !key.endsWith('.scale'))
        .map(([key, { shape }]) => {
          const full = key.endsWith('.qdata') ? [shape[0]!, shape[1]! * 2] : shape
          const data = new Float32Array(full.reduce((a, b) => a * b, 1))
          return [key.replace(/\.qdata$/, ''), { dtype: 'float32' as const, shape: full, data }]
        }),
    )
  const folderWithConfig = () => {
    const folder = temporaryFolder()
    writeFileSync(join(folder, 'config.json'), JSON.stringify(toConfigJson(tied)))
    return folder
  }

  test('ignores a head that repeats the embedding, as transformers does', async () => {
    const folder = folderWithConfig()
    const tensors = dense().set('lm_head.weight', { dtype: 'float32', shape: [40, 32], data: new Float32Array(1280) })
    await writeSafetensors(join(folder, 'model.safetensors'), tensors)
    const { config, sources, layout } = await openCheckpoint(folder)
    expect(config.tieWordEmbeddings).toBe(true)
    expect(sources.map(({ parameter }) => parameter)).not.toContain('lm_head.weight')
    expect(layout.entries).toEqual([])
  })

  test('reads shards through their index, which must agree with them', async () => {
    const folder = folderWithConfig()
    const tensors = [...dense()]
    const shards = { 'a.safetensors': tensors.slice(0, 9), 'b.safetensors': tensors.slice(9) }
    const weightMap: Record<string, string> = {}
    for (const [name, part] of Object.entries(shards)) {
      await writeSafetensors(join(folder, name), new Map(part))
      for (const [key] of part) weightMap[key] = name
    }
    const writeIndex = (map: unknown) =>
      writeFileSync(join(folder, 'model.safetensors.index.json'), JSON.stringify({ weight_map: map }))
    writeIndex(weightMap)
    const { files, sources } = await openCheckpoint(folder)
    expect(files).toEqual([join(folder, 'a.safetensors'), join(folder, 'b.safetensors')])
    expect(new Set(sources.map(({ values }) => values!.file))).toEqual(new Set([0, 1]))
    for (const [map, message] of [
      [{ ...weightMap, 'model.norm.weight': 'a.safetensors' }, /which the index puts into a.safetensors/],
      [{ ...weightMap, ghost: 'a.safetensors' }, /ghost, which no file has/],
      [{ ...weightMap, ghost: '../a.safetensors' }, /no safetensors file name/],
      [{}, /weight_map/],
    ] as const) {
      writeIndex(map)
      await expect(openCheckpoint(folder)).rejects.toMatchObject({
        code: 'CHECKPOINT_BAD_INDEX',
        message: expect.stringMatching(message),
      })
    }
  })

  test('says what it looked for in a folder without a model', async () => {
    await expect(openCheckpoint(temporaryFolder())).rejects.toMatchObject({ code: 'CHECKPOINT_NOT_FOUND' })
  })
})

describeWithShared('openCheckpoint of shared checkpoints', ['hf-parity', 'tiny-tied', 'model.safetensors'], () => {
  test.each(['tiny-tied', 'tiny-untied', 'tiny-mha'])('%s is complete', async (name) => {
    const { sources, files } = await openCheckpoint(sharedPath('hf-parity', name))
    await using reader = await SafetensorsReader.open(files[0]!)
    expect(sources).toHaveLength(reader.entries.length)
  })

  test('the same model as a .dat of the stock exporter is tied, for it has no head', async () => {
    for (const name of ['tiny-tied-fp32.dat', 'tiny-tied-fp16.dat']) {
      const checkpoint = await openCheckpoint(sharedPath('dat', name), {
        modelDir: sharedPath('hf-parity', 'tiny-tied'),
      })
      expect(checkpoint.config.tieWordEmbeddings).toBe(true)
      expect(checkpoint.sources).toHaveLength(24)
    }
  })
})
