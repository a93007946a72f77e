import { readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import {
  DatReader,
  openCheckpoint,
  readDat,
  readQwen3Config,
  saveDat,
  toConfigJson,
  type DatTensor,
  type Qwen3Config,
} from 'qwen3-nvfp4'
import { FakeModel, packedTensors, tinyConfig, writeModel, type PackedOptions } from '../support/checkpoints'
import { describeWithShared, listFolder, sharedPath, temporaryFolder } from '../support/files'

async function load(path: string, options?: { config?: Qwen3Config; strict?: boolean; modelDir?: string }) {
  const checkpoint = await openCheckpoint(path, options)
  await using reader = await DatReader.open(path)
  return { checkpoint, model: new FakeModel(checkpoint, reader.entries) }
}

async function loadTiny(options: PackedOptions = {}, change: (tensors: Map<string, DatTensor>) => void = () => {}) {
  const folder = temporaryFolder()
  const tensors = packedTensors(options)
  change(tensors)
  const path = await writeModel(folder, tensors, options.config)
  return { folder, path, ...(await load(path, { strict: false })) }
}

/** Gives a parameter a residual of bytes that differ from its codes. */
function addResidual(model: FakeModel, name: string): void {
  model.form(name).residual = true
  const of = (part: string) => model.parts.get(`${name}:${part}`)!
  model.parts.set(
    `${name}:residualCodes`,
    of('codes').map((byte) => byte ^ 0x5a),
  )
  model.parts.set(
    `${name}:residualScales`,
    of('scales').map((byte) => byte - 0x1f),
  )
}

describe('saveDat without a change writes the input byte for byte', () => {
  const inputs: [string, PackedOptions][] = [
    ['the prior layout', {}],
    ['keys without .weight', { spelling: '' }],
    ['codes of id 100, scales of id 1', { codesType: 100, scalesType: 1 }],
    ['fp16 scales and bf16 norms', { scalesType: 5, rawType: 15 }],
    ['fp32 scales and fp32 norms', { scalesType: 6, rawType: 6 }],
    ['two levels', { globalScale: 2 ** -7 }],
    ['two levels whose global scale is 1', { globalScale: 1, packEmbedding: true }],
    ['a tied model', { config: { ...tinyConfig, tieWordEmbeddings: true } }],
  ]
  test.each(inputs)('%s', async (name, options) => {
    const { path, folder, checkpoint, model } = await loadTiny(options)
    const progress: number[] = []
    const onProgress = ({ doneBytes }: { doneBytes: number }) => progress.push(doneBytes)
    const { bytes, configPath } = await saveDat(model, join(folder, 'again.dat'), checkpoint, { onProgress })
    expect(readFileSync(join(folder, 'again.dat')).equals(readFileSync(path))).toBe(true)
    expect(bytes).toBe(readFileSync(path).length)
    expect(configPath).toBe(join(folder, 'config.json'))
    expect(progress).toEqual([...progress].sort((a, b) => a - b))
  })

  test('in any order of entries, with tensors that the model does not use, onto itself, twice', async () => {
    const { path, checkpoint, model } = await loadTiny({ globalScale: 0.5 }, (tensors) => {
      tensors.set('extra', { elementType: 9, shape: [1, 2], data: new Uint8Array(16).fill(9) })
      const reversed = [...tensors].sort(([a], [b]) => (a < b ? 1 : -1))
      tensors.clear()
      for (const [key, tensor] of reversed) tensors.set(key, tensor)
    })
    const input = readFileSync(path)
    for (const time of [1, 2]) {
      await saveDat(model, path, checkpoint)
      expect([time, readFileSync(path).equals(input)]).toEqual([time, true])
    }
  })
})

describe('saveDat writes what was trained', () => {
  test('codes, scales and dense values, all of them', async () => {
    const { folder, checkpoint, model } = await loadTiny()
    for (const bytes of model.parts.values()) bytes[0]! ^= 1
    await saveDat(model, join(folder, 'tuned.dat'), checkpoint)
    const back = await load(join(folder, 'tuned.dat'))
    for (const [part, bytes] of model.parts) expect([part, back.model.parts.get(part)]).toEqual([part, bytes])
  })

  test('values that the type of the file cannot hold in the type that can', async () => {
    const { folder, checkpoint, model } = await loadTiny({ rawType: 5 })
    const norm = 'model.norm.weight'
    model.form(norm).storage = 'fp32'
    const values = Float32Array.from({ length: 32 }, (_, i) => 1 + i / 64)
    model.parts.set(`${norm}:values`, new Uint8Array(values.buffer))
    await saveDat(model, join(folder, 'exact.dat'), checkpoint)
    expect((await readDat(join(folder, 'exact.dat'))).get(norm)).toMatchObject({ elementType: 5 })
    values[31] = 1 / 3
    await saveDat(model, join(folder, 'wider.dat'), checkpoint)
    expect((await readDat(join(folder, 'wider.dat'))).get(norm)).toMatchObject({ elementType: 6, data: values })
  })

  test('a parameter that became dense, NVFP4 or two-level in the place of its old entries', async () => {
    const { folder, checkpoint, model } = await loadTiny()
    const [head, embedding, gate] = [
      'lm_head.weight',
      'model.embed_tokens.weight',
      'model.layers.0.mlp.gate_proj.weight',
    ]
    Object.assign(model.form(head), { storage: 'bf16' })
    model.parts.set(`${head}:values`, new Uint8Array(40 * 32 * 2).fill(0x3f))
    Object.assign(model.form(embedding), { storage: 'nvfp4', twoLevel: true, globalScale: 0.125 })
    model.parts.set(`${embedding}:codes`, new Uint8Array(40 * 16).fill(0x21))
    model.parts.set(`${embedding}:scales`, new Uint8Array(40 * 2).fill(0x38))
    Object.assign(model.form(gate), { twoLevel: true, globalScale: 4 })
    await saveDat(model, join(folder, 'other.dat'), checkpoint)
    const back = await readDat(join(folder, 'other.dat'))
    const keys = [...back.keys()]
    expect(keys.slice(0, 3)).toEqual([`${embedding}.qdata`, `${embedding}.scale`, `${embedding}.scale_2`])
    expect(back.get(`${embedding}.scale_2`)).toMatchObject({ elementType: 6, shape: [], data: Float32Array.of(0.125) })
    expect(back.get(head)).toMatchObject({ elementType: 15, shape: [40, 32] })
    expect(keys).not.toContain(`${head}.qdata`)
    const at = keys.indexOf(`${gate}.qdata`)
    expect(keys.slice(at, at + 3)).toEqual([`${gate}.qdata`, `${gate}.scale`, `${gate}.scale_2`])
    expect((await load(join(folder, 'other.dat'))).model.form(gate)).toMatchObject({ twoLevel: true, globalScale: 4 })
  })

  test.each(['.weight', ''] as const)('residuals behind their tensor, keys like X%s.qdata, twice', async (spelling) => {
    const { folder, path, checkpoint, model } = await loadTiny({ globalScale: 0.5, spelling })
    const [gate, head] = ['model.layers.1.mlp.gate_proj.weight', 'lm_head.weight']
    for (const name of [gate, head]) addResidual(model, name)
    await saveDat(model, join(folder, 'first.dat'), checkpoint)
    const keys = [...(await readDat(join(folder, 'first.dat'))).keys()]
    const stem = gate.replace('.weight', spelling)
    const at = keys.indexOf(`${stem}.qdata`)
    const suffixes = ['.qdata', '.scale', '.scale_2', '.residual.qdata', '.residual.scale']
    expect(keys.slice(at, at + 5)).toEqual(suffixes.map((suffix) => stem + suffix))
    const entry = (await readDat(join(folder, 'first.dat'))).get(`${stem}.residual.qdata`)
    expect(entry).toMatchObject({ elementType: 0, shape: [48, 16] })

    const back = await load(join(folder, 'first.dat'))
    expect(back.model.form(gate)).toMatchObject({ residual: true, globalScale: 0.5 })
    expect(back.model.form('model.layers.0.mlp.gate_proj.weight').residual).toBe(false)
    expect(back.model.parts.size).toBe(model.parts.size)
    for (const [part, bytes] of model.parts) expect([part, back.model.parts.get(part)]).toEqual([part, bytes])
    await saveDat(back.model, join(folder, 'second.dat'), back.checkpoint)
    expect(readFileSync(join(folder, 'second.dat')).equals(readFileSync(join(folder, 'first.dat')))).toBe(true)
    await saveDat(back.model, join(folder, 'dropped.dat'), back.checkpoint, { residual: 'drop' })
    expect(readFileSync(join(folder, 'dropped.dat')).equals(readFileSync(path))).toBe(true)
  })

  test('a model without a file of its own in the default layout', async () => {
    const { folder, checkpoint, model } = await loadTiny({
      globalScale: 0.5,
      codesType: 1,
      scalesType: 6,
      spelling: '',
    })
    await saveDat(model, join(folder, 'default.dat'), { config: checkpoint.config })
    const back = await readDat(join(folder, 'default.dat'))
    const key = 'model.layers.0.self_attn.q_proj.weight'
    expect([...back.keys()].slice(0, 5)).toEqual([
      'model.embed_tokens.weight',
      'model.layers.0.input_layernorm.weight',
      `${key}.qdata`,
      `${key}.scale`,
      `${key}.scale_2`,
    ])
    expect(back.get(`${key}.qdata`)).toMatchObject({ elementType: 0, shape: [64, 16] })
    expect(back.get(`${key}.scale`)).toMatchObject({ elementType: 101, shape: [64, 2] })
  })

  test('two levels for every tensor when asked, one level only where nothing is lost', async () => {
    const { folder, checkpoint, model } = await loadTiny()
    await saveDat(model, join(folder, 'two.dat'), checkpoint, { scales: 'two-level' })
    const two = await load(join(folder, 'two.dat'))
    expect(two.model.form('lm_head.weight')).toMatchObject({ twoLevel: true, globalScale: 1 })
    await saveDat(two.model, join(folder, 'one.dat'), two.checkpoint, { scales: 'one-level' })
    expect(readFileSync(join(folder, 'one.dat')).equals(readFileSync(join(folder, 'model.dat')))).toBe(true)
    two.model.form('lm_head.weight').globalScale = 0.5
    await expect(
      saveDat(two.model, join(folder, 'no.dat'), two.checkpoint, { scales: 'one-level' }),
    ).rejects.toMatchObject({
      code: 'SAVE_LAYOUT_MISMATCH',
      message: expect.stringMatching(/lm_head\.weight has a global scale of 0\.5/),
    })
    expect(listFolder(folder)).not.toContain('no.dat')
  })
})

describe('saveDat leaves nothing half-written', () => {
  test('when reading a parameter fails, when aborted, and when a kept tensor is gone', async () => {
    const { folder, path, checkpoint, model } = await loadTiny({}, (tensors) => {
      tensors.set('extra', { elementType: 0, shape: [1], data: Uint8Array.of(1) })
    })
    const before = listFolder(folder)
    const target = join(folder, 'out.dat')
    const broken = { parameters: model.parameters, read: () => Promise.reject(new Error('device lost')) }
    await expect(saveDat(broken, target, checkpoint)).rejects.toThrow('device lost')
    const controller = new AbortController()
    const onProgress = () => controller.abort(new Error('enough'))
    await expect(saveDat(model, target, checkpoint, { signal: controller.signal, onProgress })).rejects.toThrow(
      'enough',
    )
    await expect(saveDat(model, join(folder, 'no', 'out.dat'), checkpoint)).rejects.toMatchObject({ code: 'IO_FAILED' })
    writeFileSync(path, Uint8Array.of(0))
    await expect(saveDat(model, target, checkpoint)).rejects.toMatchObject({
      code: 'SAVE_LAYOUT_MISMATCH',
      key: 'extra',
    })
    expect(listFolder(folder)).toEqual(before)
  })

  test('and refuses a residual in one level, which has no place for it, unless told to drop it', async () => {
    const { folder, checkpoint, model } = await loadTiny()
    addResidual(model, 'lm_head.weight')
    const target = join(folder, 'out.dat')
    for (const scales of ['as-loaded', 'one-level'] as const) {
      await expect(saveDat(model, target, checkpoint, { scales })).rejects.toMatchObject({
        code: 'SAVE_LAYOUT_MISMATCH',
        key: 'lm_head.weight',
        message: expect.stringMatching(/lm_head\.weight has an NVFP4 residual.*'two-level'.*'fold' or 'drop'/),
      })
    }
    await expect(saveDat(model, target, checkpoint, { residual: 'fold' })).rejects.toThrow('for source.fold')
    expect(listFolder(folder)).not.toContain('out.dat')
    expect(await saveDat(model, target, checkpoint, { residual: 'drop' })).toMatchObject({ folded: [] })
    expect(readFileSync(target).equals(readFileSync(join(folder, 'model.dat')))).toBe(true)
    await saveDat(model, target, checkpoint, { scales: 'two-level' })
    expect((await load(target)).model.form('lm_head.weight')).toMatchObject({ twoLevel: true, residual: true })
  })

  test('and refuses misuse before anything is read', async () => {
    const { folder, checkpoint, model } = await loadTiny()
    await expect(saveDat(model, '', checkpoint)).rejects.toThrow(/path/)
    await expect(saveDat(model, join(folder, 'x.dat'), checkpoint, { scales: 'three' as never })).rejects.toThrow(
      /scales/,
    )
    await expect(saveDat(model, join(folder, 'x.dat'), checkpoint, { residual: 'refuse' as never })).rejects.toThrow(
      /residual/,
    )
  })
})

describe('saveDat writes the configuration', () => {
  test('as config.json where none is', async () => {
    const { checkpoint, model } = await loadTiny()
    const folder = temporaryFolder()
    const { configPath } = await saveDat(model, join(folder, 'new.dat'), checkpoint)
    expect(basename(configPath)).toBe('config.json')
    expect(await readQwen3Config(configPath)).toEqual(checkpoint.config)
    expect((await load(join(folder, 'new.dat'))).checkpoint.config).toEqual(checkpoint.config)
  })

  test('under its own name beside the config.json of another model, which stays', async () => {
    const { folder, checkpoint, model } = await loadTiny()
    const other = JSON.stringify(toConfigJson({ ...tinyConfig, rmsNormEps: 1e-5 }))
    writeFileSync(join(folder, 'config.json'), other)
    for (const eps of [1e-6, 1e-4]) {
      const config = { ...checkpoint.config, rmsNormEps: eps }
      const { configPath } = await saveDat(model, join(folder, 'mine.dat'), { ...checkpoint, config })
      expect(configPath).toBe(join(folder, 'mine.config.json'))
      expect((await load(join(folder, 'mine.dat'))).checkpoint.config.rmsNormEps).toBe(eps)
    }
    expect(readFileSync(join(folder, 'config.json'), 'utf8')).toBe(other)
  })

  test('leaves one that differs only in a tie that the file itself decides', async () => {
    const { folder, checkpoint, model } = await loadTiny()
    writeFileSync(join(folder, 'config.json'), JSON.stringify(toConfigJson({ ...tinyConfig, tieWordEmbeddings: true })))
    await saveDat(model, join(folder, 'untied.dat'), checkpoint)
    expect(listFolder(folder)).toEqual(['config.json', 'model.dat', 'untied.dat'])
  })
})

describeWithShared('saveDat of a file of the stock exporter', ['dat', 'tiny-tied-fp16.dat'], () => {
  test.each(['tiny-tied-fp16.dat', 'tiny-tied-fp32.dat'])('%s comes back byte for byte', async (name) => {
    const folder = temporaryFolder()
    const { checkpoint, model } = await load(sharedPath('dat', name), {
      modelDir: sharedPath('hf-parity', 'tiny-tied'),
    })
    await saveDat(model, join(folder, name), checkpoint)
    expect(readFileSync(join(folder, name)).equals(readFileSync(sharedPath('dat', name)))).toBe(true)
  })
})
