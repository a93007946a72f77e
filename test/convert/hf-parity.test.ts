import { join } from 'node:path'
import { convert, exportCheckpoint, Qwen3Nvfp4Model, verify } from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import { describeCheckpoints } from '../support/hf-parity'

const quiet = { onWarning: () => {} }

describeCheckpoints('convert a save of Hugging Face:', ({ folder }) => {
  test('fp32 values come back from every format that can hold them', async () => {
    const made = temporaryFolder()
    const dat = join(made, 'fp32.dat')
    await convert(folder, dat, { weights: 'fp32', ...quiet })
    expect(await verify(folder, dat, { by: 'bits' })).toMatchObject({ equal: true })
    const back = join(made, 'back')
    await convert(dat, back, { format: 'hf-fp32', modelDir: folder, ...quiet })
    expect(await verify(folder, back, { by: 'bits' })).toMatchObject({ equal: true })
    const gguf = join(made, 'fp32.gguf')
    await convert(back, gguf, { weights: 'fp32', ...quiet })
    expect(await verify(folder, gguf, { by: 'bits' })).toMatchObject({ equal: true })
  })

  test('NVFP4 goes round all formats bit for bit, and its bf16 export has the same values', async () => {
    const made = temporaryFolder()
    const [first, modelopt, tensors, last] = ['first.dat', 'modelopt', 'tensors', 'last.dat'].map((name) =>
      join(made, name),
    )
    const dat = { scales: 'two-level', denseType: 'bf16', ...quiet } as const
    await convert(folder, first!, dat)
    await convert(first!, modelopt!, { format: 'modelopt', ...quiet })
    await convert(modelopt!, tensors!, { format: 'compressed-tensors', ...quiet })
    await convert(tensors!, last!, dat)
    // An untied head is dense on the way, exactly.
    const { differences } = await verify(first!, last!, { by: 'bits' })
    expect(differences.filter(({ name }) => name !== 'lm_head.weight')).toEqual([])
    expect(await verify(first!, modelopt!)).toMatchObject({ equal: true })
    const [gguf, fromGguf] = [join(made, 'x.gguf'), join(made, 'from-gguf.dat')]
    await convert(first!, gguf, quiet)
    await convert(gguf, fromGguf, { ...dat, denseType: 'as-stored' })
    expect(await verify(first!, fromGguf)).toMatchObject({ equal: true })
    await convert(first!, join(made, 'dense'), { format: 'hf-bf16', ...quiet })
    expect(await verify(first!, join(made, 'dense'))).toMatchObject({ equal: true })
  })

  test('a model in memory is exported with its values', async () => {
    const made = temporaryFolder()
    await using model = await Qwen3Nvfp4Model.load(folder, { weights: 'fp32', threads: 1 })
    await exportCheckpoint(model, join(made, 'out'), { format: 'hf-fp32', modelDir: folder })
    expect(await verify(folder, join(made, 'out'), { by: 'bits' })).toMatchObject({ equal: true })
  })
})
