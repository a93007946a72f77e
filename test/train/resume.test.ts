/** A run that stops, is saved and goes on elsewhere equals the run that never stopped, bit for bit. */
import { join } from 'node:path'
import { type OptimizerOptions, type PackedAdamW, Qwen3Nvfp4Model, readDat } from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import { idsOf, tinyConfig, tinyModel } from '../support/tiny-model'

const batchOf = (step: number) => {
  const ids = [idsOf(12, step + 1), idsOf(12, step + 20)]
  return { ids, labels: ids }
}

const lr = 5e-3
const matrix = 'model.layers.0.mlp.gate_proj.weight'

async function fusedSteps(optimizer: PackedAdamW, first: number, last: number): Promise<number[]> {
  const losses: number[] = []
  for (let i = first; i < last; i++) losses.push((await optimizer.trainStep(batchOf(i), { maxGradNorm: 1 })).loss)
  return losses
}

/** Two micro-batches a step, whose gradients are kept. */
async function keptSteps(model: Qwen3Nvfp4Model, optimizer: PackedAdamW, first: number, last: number) {
  const losses: number[] = []
  for (let i = first; i < last; i++) {
    for (const { ids, labels } of [batchOf(2 * i), batchOf(2 * i + 1)]) {
      const loss = await model.loss(ids, labels)
      losses.push(loss.value)
      await loss.backward({ scale: 0.5 })
    }
    await optimizer.step({ maxGradNorm: 1 })
  }
  return losses
}

async function valuesOf(model: Qwen3Nvfp4Model): Promise<Map<string, Float32Array>> {
  const values = new Map<string, Float32Array>()
  for (const parameter of model.parameters()) values.set(parameter.name, await parameter.read())
  return values
}

const paths = (folder: string) => ({ dat: join(folder, 'model.dat'), state: join(folder, 'state') })

/** The .dat and the optimizer's file of a model after two saves in a row: the files on which a run ends. */
async function filesOf(model: Qwen3Nvfp4Model, optimizer: PackedAdamW, folder = temporaryFolder()) {
  const { dat, state } = paths(folder)
  await optimizer.save(state)
  await model.saveDat(dat)
  return { dat: await readDat(dat), state }
}

describe('training that is saved and resumed equals training without a stop', () => {
  const modes: OptimizerOptions[] = [
    { weights: 'nvfp4', weightDecay: 0.1 },
    { weights: 'nvfp4+residual', weightDecay: 0.1 },
    { weights: 'nvfp4+residual', residualInForward: false },
    { weights: 'fp32' },
    { weights: 'bf16', moments: 'int8' },
    { weights: 'fp32', moments: 'bf16' },
  ]
  const runs: [OptimizerOptions, number, number][] = modes.flatMap((options) => [
    [options, 1, 5],
    [options, 3, 1024],
  ])

  test.each(runs)('with %j, on %i threads by chunks of %i rows', async (options, threads, stepChunkRows) => {
    const folder = temporaryFolder()
    const { dat, state } = paths(folder)
    await using model = await tinyModel()
    const optimizer = model.createOptimizer({ lr, seed: 9, moments: 'nvfp4', ...options })
    await fusedSteps(optimizer, 0, 3)
    await filesOf(model, optimizer, folder)

    await using other = await Qwen3Nvfp4Model.load(dat, { threads })
    expect(await valuesOf(other)).toEqual(await valuesOf(model))
    const resumed = other.createOptimizer({ lr, seed: 1, moments: 'nvfp4', ...options, stepChunkRows })
    expect(await resumed.load(state)).toBe(3)
    expect(await fusedSteps(resumed, 3, 6)).toEqual(await fusedSteps(optimizer, 3, 6))
    expect(await valuesOf(other)).toEqual(await valuesOf(model))
    expect((await filesOf(other, resumed)).dat).toEqual((await filesOf(model, optimizer)).dat)
  })

  test.each(['fp32', 'bf16', 'nvfp4'] as const)('with %s gradients that are kept', async (gradients) => {
    const folder = temporaryFolder()
    const { dat, state } = paths(folder)
    await using model = await tinyModel()
    const options = { lr, gradients, weights: 'nvfp4+residual', moments: 'nvfp4' } as const
    const optimizer = model.createOptimizer({ ...options, seed: 9 })
    await keptSteps(model, optimizer, 0, 2)
    await filesOf(model, optimizer, folder)

    await using other = await Qwen3Nvfp4Model.load(dat, { threads: 1 })
    const resumed = other.createOptimizer({ ...options, seed: 1 })
    await resumed.load(state)
    expect(await keptSteps(other, resumed, 2, 4)).toEqual(await keptSteps(model, optimizer, 2, 4))
    expect(await valuesOf(other)).toEqual(await valuesOf(model))
  })

  test('a new optimizer goes on from the residuals of a loaded model', async () => {
    const { dat } = paths(temporaryFolder())
    await using model = await tinyModel()
    const options = { lr, weights: 'nvfp4+residual' } as const
    const first = model.createOptimizer(options)
    await fusedSteps(first, 0, 2)
    await model.saveDat(dat)
    await first.dispose()
    await using other = await Qwen3Nvfp4Model.load(dat)
    const [here, there] = [model.createOptimizer(options), other.createOptimizer(options)]
    expect(await fusedSteps(there, 2, 4)).toEqual(await fusedSteps(here, 2, 4))
    expect(await valuesOf(other)).toEqual(await valuesOf(model))
  })
})

describe('what was trained with a residual', () => {
  let model: Qwen3Nvfp4Model
  const { dat } = paths(temporaryFolder())
  beforeAll(async () => {
    model = await tinyModel()
    const optimizer = model.createOptimizer({ lr, weights: 'nvfp4+residual' })
    await fusedSteps(optimizer, 0, 3)
    await model.saveDat(dat)
  })
  afterAll(() => model.dispose())

  test('has a residual that is not zero in the file, and without it the values are others', async () => {
    const residual = (await readDat(dat)).get(`${matrix}.residual.qdata`)!
    expect((residual.data as Uint8Array).some((byte) => byte !== 0)).toBe(true)
    const dropped = join(temporaryFolder(), 'dropped.dat')
    await model.saveDat(dropped, { residual: 'drop' })
    await using without = await Qwen3Nvfp4Model.load(dropped)
    expect(await without.parameter(matrix)!.read()).not.toEqual(await model.parameter(matrix)!.read())
    expect([...(await readDat(dropped)).keys()].filter((key) => key.includes('residual'))).toEqual([])
  })

  test.each(['fp32', 'nvfp4'] as const)('loads as %s with the values that it had', async (weights) => {
    await using loaded = await Qwen3Nvfp4Model.load(dat, { weights })
    expect(loaded.parameter(matrix)!.storage).toBe(weights)
    expect(await valuesOf(loaded)).toEqual(await valuesOf(model))
  })

  test.each(['as-loaded', 'one-level'] as const)(
    'folds into one tensor of %s scales and says what that loses',
    async (scales) => {
      const folded = join(temporaryFolder(), 'folded.dat')
      const report = (await model.saveDat(folded, { residual: 'fold', scales })).folded
      await using loaded = await Qwen3Nvfp4Model.load(folded)
      const trained = await valuesOf(model)
      const matrices = [...trained.keys()].filter((name) => !name.includes('norm'))
      expect(report.map(({ name }) => name)).toEqual(matrices)
      for (const { name, relativeRmsError } of report) {
        const [is, was] = [await loaded.parameter(name)!.read(), trained.get(name)!]
        const error = Math.sqrt(was.reduce((sum, value, i) => sum + (is[i]! - value) ** 2, 0))
        expect(relativeRmsError).toBeCloseTo(error / Math.hypot(...was), 10)
        expect(relativeRmsError).toBeGreaterThan(0.01)
        expect(relativeRmsError).toBeLessThan(0.15)
      }
      const entries = await readDat(folded)
      expect(entries.has(`${matrix}.residual.qdata`)).toBe(false)
      expect(entries.has(`${matrix}.scale_2`)).toBe(scales === 'as-loaded')
      // Saving changes nothing in memory.
      expect(await valuesOf(model)).toEqual(trained)
    },
  )

  test('is replaced as a whole by new values, and goes on being trained', async () => {
    await using own = await tinyModel()
    const optimizer = own.createOptimizer({ lr, weights: 'nvfp4+residual' })
    await fusedSteps(optimizer, 0, 1)
    const flat = new Float32Array(tinyConfig.hiddenSize * tinyConfig.intermediateSize).fill(0.75)
    await own.parameter(matrix)!.write(flat)
    expect(await own.parameter(matrix)!.read()).toEqual(flat)
    await fusedSteps(optimizer, 1, 2)
    expect(await own.parameter(matrix)!.read()).not.toEqual(flat)
  })

  test('is refused under masters, which would not train it', async () => {
    await using loaded = await Qwen3Nvfp4Model.load(dat)
    const optimizer = loaded.createOptimizer({ weights: 'fp32' })
    await expect(optimizer.trainStep(batchOf(0))).rejects.toThrow("Expected weights 'nvfp4+residual' for the optimizer")
  })
})

test.each(['fp32', 'bf16'] as const)(
  'with %s masters the NVFP4 codes are saved, which are what is served',
  async (weights) => {
    const { dat } = paths(temporaryFolder())
    await using model = await tinyModel()
    const optimizer = model.createOptimizer({ lr, weights })
    await fusedSteps(optimizer, 0, 2)
    await model.saveDat(dat)
    await using loaded = await Qwen3Nvfp4Model.load(dat)
    expect(loaded.parameter(matrix)!.storage).toBe('nvfp4')
    expect(await valuesOf(loaded)).toEqual(await valuesOf(model))
  },
)
