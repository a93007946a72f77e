import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { convert, inspect, toConfigJson, writeDat, writeSafetensors } from 'qwen3-nvfp4'
import { packedTensors, tinyConfig, writeModel } from '../support/checkpoints'
import { denseConfig, denseTensors, writeDense } from '../support/dense-directory'
import { temporaryFolder } from '../support/files'

const quiet = { onWarning: () => {} }
const formats = ['dat', 'hf-bf16', 'modelopt', 'compressed-tensors'] as const

describe('inspect', () => {
  test.each(formats)('finds every parameter of %s, and nothing missing', async (format) => {
    const folder = temporaryFolder()
    const target = join(folder, format === 'dat' ? 'x.dat' : 'x')
    const { bytes } = await convert(await writeDense(join(folder, 'source')), target, { format, ...quiet })
    const found = await inspect(target)
    expect(found).toMatchObject({ missing: [], unexpected: [], ignored: [], problems: [] })
    expect(found.format).toBe(format === 'hf-bf16' ? 'hf' : format)
    expect(found.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0)).toBe(bytes)
    expect(found.tensors.every(({ parameter, part }) => parameter !== undefined && part !== undefined)).toBe(true)
    expect(found.dtypes.reduce((sum, { tensors }) => sum + tensors, 0)).toBe(found.tensors.length)
    expect(found.config!.hiddenSize).toBe(48)
    const own = format === 'dat' ? 101 * 48 : 0
    expect(found.parameterCount).toBe([...denseTensors()].reduce((sum, [, { data }]) => sum + data.byteLength / 2, own))
  })

  test('counts the scales of every NVFP4 tensor when asked to', async () => {
    const folder = temporaryFolder()
    const path = await writeModel(folder, packedTensors())
    const tensor = (await inspect(path, { scales: true })).tensors.find(({ key }) =>
      key.endsWith('q_proj.weight.scale'),
    )!
    // Scales of the made-up file: 2^-3, 1 and 1.75, at random.
    expect(tensor.scales).toMatchObject({ blocks: 64 * 2, smallest: 0.125, largest: 1.75, zero: 0, subnormal: 0 })
    expect((await inspect(path)).tensors.every(({ scales }) => scales === undefined)).toBe(true)
    const tensors = packedTensors()
    const scales = tensors.get('lm_head.weight.scale')!
    scales.data = (scales.data as Uint8Array).map((_, i) => [0, 1, 7, 8, 0x7e, 0x7f, 0x80][i] ?? 0x38)
    const odd = await inspect(await writeModel(temporaryFolder(), tensors), { scales: true })
    expect(odd.tensors.find(({ key }) => key === 'lm_head.weight.scale')!.scales).toEqual({
      blocks: 80,
      smallest: 2 ** -9,
      largest: 448,
      zero: 1,
      subnormal: 2,
      invalid: 2,
    })
  })

  test('says what is missing, unexpected and of another shape, all at once', async () => {
    const folder = temporaryFolder()
    const tensors = packedTensors()
    tensors.delete('model.norm.weight')
    tensors.delete('lm_head.weight.scale')
    tensors.set('extra', { elementType: 0, shape: [1], data: Uint8Array.of(1) })
    tensors.set('model.layers.0.input_layernorm.weight', { elementType: 6, shape: [5], data: new Float32Array(5) })
    const path = await writeModel(folder, tensors)
    const found = await inspect(path)
    expect(found.missing).toEqual(['model.norm.weight', 'lm_head.weight.scale'])
    expect(found.unexpected).toEqual(['extra'])
    expect(found.problems).toEqual([expect.stringContaining('input_layernorm.weight but received [5]')])
  })

  test('shows the tensors of a file whose configuration is absent or refused, and says why', async () => {
    const folder = temporaryFolder()
    const path = join(folder, 'model.dat')
    await writeDat(path, packedTensors())
    const lost = await inspect(path)
    expect(lost.tensors).toHaveLength(packedTensors().size)
    expect(lost.config).toBeUndefined()
    expect(lost.problems).toEqual([expect.stringContaining('looked for')])
    expect(await inspect(path, { config: tinyConfig })).toMatchObject({ problems: [], missing: [] })
    await writeSafetensors(join(folder, 'model.safetensors'), denseTensors())
    const other = { ...toConfigJson(denseConfig), model_type: 'qwen3_moe', architectures: ['Qwen3MoeForCausalLM'] }
    writeFileSync(join(folder, 'config.json'), JSON.stringify(other))
    expect((await inspect(folder)).problems).toEqual([expect.stringContaining('"qwen3_moe"')])
  })

  test("reads no more than the index: a file without its payloads' bytes is as quick", async () => {
    const folder = temporaryFolder()
    const path = await writeModel(folder, packedTensors())
    const found = await inspect(path)
    expect(found.files).toEqual([{ path, bytes: readFileSync(path).length, tensors: packedTensors().size }])
  })
})
