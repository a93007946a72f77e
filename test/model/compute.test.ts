import { Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import { tinyConfig, tinyModel } from '../support/tiny-model'

describe("compute 'w4a4' on the CPU", () => {
  const refusal = {
    code: 'UNSUPPORTED',
    message:
      "compute 'w4a4' needs a GPU of compute capability 10.0 or newer (Blackwell), whose tensor cores multiply FP4, " +
      "and this model is on the CPU; use 'w4a16'",
  }

  test('is refused by initialize, and nothing stays allocated', async () => {
    await using other = await tinyModel()
    const { total } = await other.memory()
    await expect(tinyModel({ compute: 'w4a4' })).rejects.toMatchObject(refusal)
    expect((await other.memory()).total).toBe(total)
  })

  test('is refused by load', async () => {
    await using model = await tinyModel()
    const path = `${temporaryFolder()}/model.dat`
    await model.saveDat(path)
    const options = { config: tinyConfig, threads: 2 }
    await expect(Qwen3Nvfp4Model.load(path, { ...options, compute: 'w4a4' })).rejects.toMatchObject(refusal)
    await using loaded = await Qwen3Nvfp4Model.load(path, { ...options, compute: 'w4a16' })
    expect(loaded.compute).toBe('w4a16')
  })
})

test("compute is 'w4a16' unless asked for, and nothing else than the two", async () => {
  await using model = await tinyModel()
  expect(model.compute).toBe('w4a16')
  const options = { compute: 'w8a8' as 'w4a4' }
  const message = `Expected 'w4a16' | 'w4a4' for compute but received "w8a8"`
  await expect(Qwen3Nvfp4Model.initialize(tinyConfig, options)).rejects.toThrow(message)
  await expect(Qwen3Nvfp4Model.load('nowhere', options)).rejects.toThrow(message)
})
