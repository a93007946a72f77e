import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { convert, exportCheckpoint, Qwen3Nvfp4Model, type ConvertOptions } from 'qwen3-nvfp4'
import { writeDense } from '../support/dense-directory'
import { listFolder, temporaryFolder } from '../support/files'
import { idsOf, tinyModel } from '../support/tiny-model'

const quiet = { onWarning: () => {} }

async function logitsOf(model: Qwen3Nvfp4Model): Promise<Float32Array> {
  const { logits } = await model.forward(idsOf(9), { logits: 'all' })
  return logits!.toFloat32Array()
}

describe('exportCheckpoint', () => {
  test.each(['hf-bf16', 'modelopt', 'compressed-tensors'] as const)(
    'of an NVFP4 model to %s has the same weights and logits when loaded as it is stored',
    async (format) => {
      const folder = temporaryFolder()
      const target = join(folder, 'out')
      await using model = await tinyModel()
      const { tensors, files } = await exportCheckpoint(model, target, { format, ...quiet })
      expect(tensors.filter(({ exact }) => !exact)).toEqual([])
      expect(listFolder(folder)).toEqual(['out'])
      expect(files.every((file) => file.startsWith(target))).toBe(true)
      await using loaded = await Qwen3Nvfp4Model.load(target, { weights: 'fp32', threads: 2 })
      const [before, after] = [await logitsOf(model), await logitsOf(loaded)]
      for (let i = 0; i < before.length; i++) expect(after[i]).toBeCloseTo(before[i]!, 4)
    },
  )

  test('takes tokenizer and further fields of the configuration from modelDir, if it is of this model', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    await using model = await Qwen3Nvfp4Model.load(source, { threads: 1 })
    await exportCheckpoint(model, join(folder, 'out'), { format: 'hf-bf16', modelDir: source })
    expect(listFolder(join(folder, 'out'))).toContain('tokenizer.json')
    const config = () => JSON.parse(readFileSync(join(folder, 'out', 'config.json'), 'utf8')) as Record<string, unknown>
    expect(config()).toMatchObject({ initializer_range: 0.02, max_window_layers: 28 })
    await using other = await tinyModel()
    await exportCheckpoint(other, join(folder, 'other'), { format: 'hf-bf16', modelDir: source })
    const text = readFileSync(join(folder, 'other', 'config.json'), 'utf8')
    expect(JSON.parse(text)).toMatchObject({ hidden_size: 32, rope_theta: 10_000 })
    expect(text).not.toContain('initializer_range')
  })

  test('refuses a .dat, which saveDat writes, and leaves nothing when it fails', async () => {
    const folder = temporaryFolder()
    await using model = await tinyModel()
    await expect(exportCheckpoint(model, join(folder, 'x'), { format: 'dat' as never })).rejects.toThrow(RangeError)
    await expect(exportCheckpoint(model, join(folder, 'x'), {} as never)).rejects.toThrow(/^Expected one of hf-bf16/)
    const reason = new Error('enough')
    const aborted = { format: 'modelopt', signal: AbortSignal.abort(reason) } as const
    await expect(exportCheckpoint(model, join(folder, 'x'), aborted)).rejects.toBe(reason)
    const nowhere = exportCheckpoint(model, join(folder, 'no', 'x'), { format: 'modelopt' })
    await expect(nowhere).rejects.toMatchObject({ code: 'IO_FAILED' })
    expect(listFolder(folder)).toEqual([])
  })
})

test('what reads back with other bytes is refused and removed, and an older file stays', async () => {
  const folder = temporaryFolder()
  const source = await writeDense(join(folder, 'source'))
  const target = join(folder, 'x.dat')
  writeFileSync(target, 'older')
  let spoiled = false
  const onProgress: ConvertOptions['onProgress'] = ({ phase }) => {
    if (phase !== 'verify' || spoiled) return
    spoiled = true
    const staging = listFolder(folder).find((name) => name.endsWith('.tmp'))!
    const file = join(folder, staging, 'model.dat')
    const bytes = readFileSync(file)
    bytes[bytes.length - 1]! ^= 1
    writeFileSync(file, bytes)
  }
  await expect(convert(source, target, { ...quiet, onProgress })).rejects.toMatchObject({
    code: 'VERIFY_FAILED',
    key: 'lm_head.weight.scale',
  })
  expect(listFolder(folder)).toEqual(['source', 'x.dat'])
  expect(readFileSync(target, 'utf8')).toBe('older')
})
