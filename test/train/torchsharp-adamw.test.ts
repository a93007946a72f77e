/** Moments to and from TorchSharp's AdamW. */
import { join } from 'node:path'
import {
  AdamwFileReader,
  exportTorchSharpAdamW,
  importTorchSharpAdamW,
  type Moments,
  type OptimizerOptions,
  type PackedAdamW,
  type Qwen3Nvfp4Model,
  writeAdamwFile,
} from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import { idsOf, tinyModel } from '../support/tiny-model'

const norm = 'model.norm.weight'
const matrix = 'model.layers.1.mlp.up_proj.weight'

async function train(optimizer: PackedAdamW, first: number, last: number): Promise<number[]> {
  const losses = []
  for (let i = first; i < last; i++) {
    const ids = idsOf(12, i + 1)
    losses.push((await optimizer.trainStep({ ids, labels: ids }, { lr: 1e-3 })).loss)
  }
  return losses
}

/** A model trained for three steps, and the TorchSharp file of its optimizer. */
async function trained(
  options: OptimizerOptions,
): Promise<{ model: Qwen3Nvfp4Model; optimizer: PackedAdamW; path: string }> {
  const model = await tinyModel({ weights: 'fp32' })
  const optimizer = model.createOptimizer({ weightDecay: 0.01, ...options })
  await train(optimizer, 0, 3)
  const path = join(temporaryFolder(), 'adamw.dat')
  await exportTorchSharpAdamW(model, optimizer, path)
  return { model, optimizer, path }
}

const relativeError = (a: Float32Array, b: Float32Array) => Math.hypot(...a.map((x, i) => x - b[i]!)) / Math.hypot(...b)

test('the file has raw moments: those of the formulas, without bias correction', async () => {
  const { model, optimizer, path } = await trained({ moments: 'fp32' })
  await using file = await AdamwFileReader.open(path)
  const names = [...model.parameters()].map(({ name }) => name)
  expect(file.states.map(({ shape }) => shape)).toEqual([...model.parameters()].map(({ shape }) => shape))
  expect(file.groups).toMatchObject([{ beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01, lr: 1e-4 }])
  const { step, m, v } = await file.read(names.indexOf(matrix))
  const corrected = await optimizer.readMoments(matrix)
  expect(step).toBe(3)
  expect(
    relativeError(
      m,
      corrected.m.map((x) => x * (1 - 0.9 ** 3)),
    ),
  ).toBeLessThan(1e-6)
  expect(
    relativeError(
      v,
      corrected.v.map((x) => x * (1 - 0.999 ** 3)),
    ),
  ).toBeLessThan(1e-6)
  await model.dispose()
})

test('with fp32 moments training goes on as if it had not been elsewhere', async () => {
  const { model, optimizer, path } = await trained({ moments: 'fp32' })
  const before = await optimizer.readMoments(matrix)
  const weights = await model.parameter(matrix)!.read()
  const other = model.createOptimizer({ moments: 'fp32', weightDecay: 0.01 })
  const { options, parameters } = await importTorchSharpAdamW(model, other, path)
  expect(options.weightDecay).toBe(0.01)
  expect(
    parameters.every(({ updates, momentError, rootError }) => updates === 3 && momentError + rootError === 0),
  ).toBe(true)
  const after = await other.readMoments(matrix)
  expect(after.updates).toBe(3)
  expect(relativeError(after.m, before.m)).toBeLessThan(1e-7)
  expect(relativeError(after.v, before.v)).toBeLessThan(1e-7)
  expect(await model.parameter(matrix)!.read()).toEqual(weights)
  const losses = await train(other, 3, 6)
  const expected = await trained({ moments: 'fp32' }).then(({ optimizer }) => train(optimizer, 3, 6))
  losses.forEach((loss, i) => expect(loss).toBeCloseTo(expected[i]!, 5))
  await model.dispose()
})

// Relative RMS: E2M1 has 1 mantissa bit under a scale a block; int8 codes are 127 steps; bf16 has 8 bits.
test.each<[Moments, number, number]>([
  ['nvfp4', 0.2, 0.35],
  ['int8', 0.02, 0.02],
  ['bf16', 0.003, 0.003],
])('as %s they are rounded, and the error of each parameter is said', async (moments, mostOfM, mostOfRoot) => {
  const { model, optimizer, path } = await trained({ moments: 'fp32' })
  const exact = await optimizer.readMoments(matrix)
  const packed = model.createOptimizer({ moments, weightDecay: 0.01 })
  const { parameters } = await importTorchSharpAdamW(model, packed, path)
  const report = parameters.find(({ name }) => name === matrix)!
  expect(report.momentError).toBeGreaterThan(0)
  expect(report.momentError).toBeLessThan(mostOfM)
  expect(report.rootError).toBeLessThan(mostOfRoot)
  const stored = await packed.readMoments(matrix)
  expect(relativeError(stored.m, exact.m)).toBeCloseTo(report.momentError, 4)
  expect(parameters.find(({ name }) => name === norm)).toMatchObject({ momentError: 0, rootError: 0 })
  // What is stored is what is read: a second round through a file changes almost nothing more.
  const again = join(temporaryFolder(), 'again.dat')
  await exportTorchSharpAdamW(model, packed, again)
  await using file = await AdamwFileReader.open(again)
  const { m } = await file.read(parameters.indexOf(report))
  expect(
    relativeError(
      m,
      stored.m.map((x) => x * (1 - 0.9 ** 3)),
    ),
  ).toBeLessThan(1e-6)
  await train(packed, 3, 6)
  await model.dispose()
})

describe('a file that does not fit is refused before anything changes', () => {
  let model: Qwen3Nvfp4Model
  let optimizer: PackedAdamW
  const path = join(temporaryFolder(), 'one.dat')
  const state = { step: 1, shape: [32], m: new Float32Array(32).fill(1), v: new Float32Array(32).fill(1) }
  const group = {
    lr: 1,
    initialLr: 1,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weightDecay: 0,
    amsgrad: false,
    maximize: false,
  }
  beforeAll(async () => {
    model = await tinyModel()
    optimizer = model.createOptimizer()
    await writeAdamwFile(path, [group], 1, [state])
  })
  afterAll(() => model.dispose())

  test('by number, shape, betas and kind', async () => {
    const parameters = [norm]
    await expect(importTorchSharpAdamW(model, optimizer, path)).rejects.toThrow(
      /has the state of 1 parameters, \d+ are to be set/,
    )
    await expect(importTorchSharpAdamW(model, optimizer, path, { parameters: [matrix] })).rejects.toMatchObject({
      code: 'STATE_MISMATCH',
      message: `state 0 is [32], ${matrix} is [64, 32]: give parameters in the file's order`,
    })
    for (const change of [{ beta2: 0.95 }, { amsgrad: true }]) {
      const other = join(temporaryFolder(), 'other.dat')
      await writeAdamwFile(other, [{ ...group, ...change }], 1, [state])
      await expect(importTorchSharpAdamW(model, optimizer, other, { parameters })).rejects.toMatchObject({
        code: 'STATE_MISMATCH',
      })
    }
    expect((await optimizer.readMoments(norm)).m).toEqual(new Float32Array(32))
    await importTorchSharpAdamW(model, optimizer, path, { parameters })
    expect((await optimizer.readMoments(norm)).updates).toBe(1)
  })

  test('by values', async () => {
    const moments = { m: new Float32Array(32), v: new Float32Array(32).fill(-1), updates: 1 }
    await expect(optimizer.writeMoments(norm, moments)).rejects.toThrow('Expected finite numbers of at least 0 for v')
    await expect(optimizer.writeMoments('none', { ...moments, v: moments.m })).rejects.toThrow(
      "the name of a parameter but received 'none'",
    )
    await expect(optimizer.writeMoments(matrix, { ...moments, v: moments.m })).rejects.toThrow(
      'Expected 2048 moments for',
    )
    const part = model.createOptimizer({ trainable: (name) => name === norm })
    await expect(part.readMoments(matrix)).rejects.toThrow('has no moments, as it is not trained')
  })
})
