import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { OptimizerOptions, Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { expectClose, idsOf, tinyConfig, tinyModel } from '../support/tiny-model'

const batchOf = (step: number) => {
  const ids = [idsOf(12, step + 1), idsOf(12, step + 20)]
  return { ids, labels: ids }
}

/** Every parameter's values in one array. */
async function weightsOf(model: Qwen3Nvfp4Model): Promise<number[]> {
  const all: number[] = []
  for (const parameter of model.parameters()) all.push(...(await parameter.read()))
  return all
}

/** Losses of `steps` fused steps from the same start, and the weights at the end. */
async function train(options: OptimizerOptions, steps: number, model?: Qwen3Nvfp4Model) {
  const own = model ?? (await tinyModel())
  const optimizer = own.createOptimizer({ lr: 5e-3, ...options })
  const losses: number[] = []
  for (let i = 0; i < steps; i++) losses.push((await optimizer.trainStep(batchOf(0), { maxGradNorm: 1 })).loss)
  const weights = await weightsOf(own)
  await optimizer.dispose()
  if (!model) await own.dispose()
  return { losses, weights }
}

describe('PackedAdamW', () => {
  const modes: OptimizerOptions[] = [
    { weights: 'nvfp4', moments: 'nvfp4' },
    { weights: 'nvfp4+residual', moments: 'nvfp4' },
    { weights: 'nvfp4+residual', moments: 'nvfp4', residualInForward: false },
    { weights: 'nvfp4', moments: 'nvfp4', weightDecay: 0.1 },
    { weights: 'bf16', moments: 'int8' },
    { weights: 'fp32', moments: 'bf16' },
    { weights: 'fp32', moments: 'fp32' },
  ]
  test.each(modes)('learns one batch by heart with %j', async (options) => {
    const { losses } = await train(options, 30)
    expect(losses.at(-1)).toBeLessThan(losses[0]! * 0.5)
  })

  test.each(modes)('gives the same bytes whatever the chunk size and number of threads, with %j', async (options) => {
    const expected = await train({ ...options, stepChunkRows: 1024 }, 4)
    expect(await train({ ...options, stepChunkRows: 5 }, 4)).toEqual(expected)
    const single = await tinyModel({ threads: 1 })
    expect(await train(options, 4, single)).toEqual(expected)
    await single.dispose()
  })

  test('draws other bits with another seed', async () => {
    expect((await train({ seed: 1 }, 2)).weights).not.toEqual((await train({ seed: 2 }, 2)).weights)
  })

  test('a step with a learning rate of 0 changes nothing', async () => {
    const model = await tinyModel()
    const before = await weightsOf(model)
    const optimizer = model.createOptimizer({ lr: 0 })
    const { changedCodes } = await optimizer.trainStep(batchOf(0))
    expect(changedCodes).toBe(0)
    expect(await weightsOf(model)).toEqual(before)
    await model.dispose()
  })

  test('a fused step equals backward and step', async () => {
    const [a, b] = [await tinyModel(), await tinyModel()]
    const options = { lr: 1e-2, weights: 'fp32', moments: 'fp32' } as const
    const fused = a.createOptimizer(options)
    const kept = b.createOptimizer(options)
    for (let i = 0; i < 3; i++) {
      const { ids, labels } = batchOf(i)
      const one = await fused.trainStep({ ids, labels })
      const loss = await b.loss(ids, labels)
      await loss.backward()
      const two = await kept.step()
      expectClose([one.loss, one.gradNorm, one.updateRms], [loss.value, two.gradNorm, two.updateRms], 1e-5, 1e-4)
      expect([one.step, two.step]).toEqual([i + 1, i + 1])
    }
    expectClose(await weightsOf(a), await weightsOf(b), 1e-4)
    await Promise.all([a.dispose(), b.dispose()])
  })

  test('a step consumes the gradients unless told to keep them', async () => {
    const model = await tinyModel()
    const optimizer = model.createOptimizer()
    const parameter = model.parameter('model.norm.weight')!
    const { ids, labels } = batchOf(0)
    await (await model.loss(ids, labels)).backward()
    await optimizer.step({ keepGradients: true })
    expect(await parameter.grad()).not.toBeNull()
    await optimizer.step()
    expect(await parameter.grad()).toBeNull()
    await expect(optimizer.step()).rejects.toThrow('there are no gradients to step with')
    await (await model.loss(ids, labels)).backward()
    await optimizer.zeroGrad()
    expect(await parameter.grad()).toBeNull()
    await model.dispose()
  })

  test('clips to the norm that is asked for, and reports the norm before', async () => {
    const model = await tinyModel()
    const optimizer = model.createOptimizer()
    const { ids, labels } = batchOf(0)
    await (await model.loss(ids, labels)).backward()
    let squares = 0
    for (const parameter of model.parameters()) for (const g of (await parameter.grad())!) squares += g * g
    const { gradNorm, clipScale } = await optimizer.step({ maxGradNorm: 0.5 })
    expectClose([gradNorm, clipScale], [Math.sqrt(squares), 0.5 / Math.sqrt(squares)], 0, 1e-5)
    await model.dispose()
  })

  test('a fused step clips by the norm of the step before, the first one by its own', async () => {
    const [model, other] = [await tinyModel(), await tinyModel()]
    const options = { lr: 1e-2, weights: 'fp32', moments: 'fp32' } as const
    const optimizer = model.createOptimizer(options)
    const steps = []
    for (let i = 0; i < 3; i++) steps.push(await optimizer.trainStep(batchOf(i), { maxGradNorm: 0.5 }))
    const norms = steps.map(({ gradNorm }) => gradNorm)
    const expected = [norms[0]!, norms[0]!, norms[1]!].map((norm) => 0.5 / norm)
    expectClose(
      steps.map(({ clipScale }) => clipScale),
      expected,
      0,
      1e-5,
    )
    const { ids, labels } = batchOf(0)
    await (await other.loss(ids, labels)).backward()
    const exact = await other.createOptimizer(options).step({ maxGradNorm: 0.5 })
    const { step, gradNorm, clipScale, updateRms } = steps[0]!
    expectClose([step, gradNorm, clipScale, updateRms], [1, exact.gradNorm, exact.clipScale, exact.updateRms], 0, 1e-5)
    await Promise.all([model.dispose(), other.dispose()])
  })

  test('parameters that are left out keep every bit', async () => {
    const model = await tinyModel()
    const optimizer = model.createOptimizer({ lr: 1e-2, trainable: (name) => name.includes('mlp') })
    const read = async () =>
      new Map(await Promise.all([...model.parameters()].map(async (p) => [p.name, await p.read()] as const)))
    const before = await read()
    await optimizer.trainStep(batchOf(0))
    for (const [name, values] of await read()) {
      const expectation = name.includes('mlp') ? expect(values).not : expect(values)
      expectation.toEqual(before.get(name))
      expect(model.parameter(name)!.trainable).toBe(name.includes('mlp'))
    }
    await model.dispose()
  })

  test('NVFP4 gradients refuse a fifth micro-batch unless asked', async () => {
    const model = await tinyModel()
    const { ids, labels } = batchOf(0)
    const add = async () => (await model.loss(ids, labels)).backward()
    model.createOptimizer({ gradients: 'nvfp4' })
    for (let i = 0; i < 4; i++) await add()
    await expect(add()).rejects.toMatchObject({ code: 'UNSUPPORTED' })
    await model.zeroGrad()
    model.createOptimizer({ gradients: 'nvfp4', allowManyMicroBatches: true })
    for (let i = 0; i < 5; i++) await add()
    await model.dispose()
  })

  test('a state of another model or mode is refused, and nothing changes', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'qn-adamw-'))
    const model = await tinyModel()
    const optimizer = model.createOptimizer()
    await optimizer.trainStep(batchOf(0))
    await optimizer.save(join(folder, 'state'))
    const wider = await tinyModel({}, { ...tinyConfig, intermediateSize: 96 })
    await expect(wider.createOptimizer().load(join(folder, 'state'))).rejects.toMatchObject({ code: 'STATE_MISMATCH' })
    await expect(model.createOptimizer({ moments: 'int8' }).load(join(folder, 'state'))).rejects.toMatchObject({
      code: 'STATE_MISMATCH',
    })
    await expect(optimizer.load(join(folder, 'absent'))).rejects.toMatchObject({ code: 'IO_FAILED' })
    await expect(optimizer.save(join(folder, 'no', 'state'))).rejects.toMatchObject({ code: 'IO_FAILED' })
    expect((await readFile(join(folder, 'state'))).length).toBeGreaterThan(await optimizer.stateBytes())
    await rm(folder, { recursive: true })
    await Promise.all([model.dispose(), wider.dispose()])
  })

  test('a batch without a counted label, and a gradient that is not finite, change nothing', async () => {
    const model = await tinyModel({ weights: 'fp32' })
    const optimizer = model.createOptimizer()
    const { ids } = batchOf(0)
    await expect(optimizer.trainStep({ ids, labels: ids.map((row) => row.map(() => -100)) })).rejects.toThrow(
      'at least one label',
    )
    await model.parameter('model.norm.weight')!.write(new Float32Array(32).fill(3e38))
    const before = await weightsOf(model)
    await expect(optimizer.trainStep({ ids, labels: ids })).rejects.toMatchObject({ code: 'NON_FINITE_GRADIENT' })
    expect(await weightsOf(model)).toEqual(before)
    await model.dispose()
  })

  test.each([
    ['the head', 'model.embed_tokens.weight', 'lm_head'],
    ['a layer', 'model.layers.1.input_layernorm.weight', 'model.layers.1'],
    ['the final norm', 'model.norm.weight', 'model.norm'],
  ])('a loss that is not finite names where it began, %s', async (_, name, key) => {
    await using model = await tinyModel({ weights: 'fp32' })
    const parameter = model.parameter(name)!
    await parameter.write(new Float32Array(parameter.count).fill(3e38))
    const optimizer = model.createOptimizer({ lr: 0 })
    const failure = { code: 'NON_FINITE_GRADIENT', key, message: expect.stringContaining(key) }
    const { ids } = batchOf(0)
    await expect(optimizer.trainStep({ ids, labels: ids })).rejects.toMatchObject({ ...failure, step: 1 })
    const loss = await model.loss(ids, ids)
    expect(loss.value).toBeNaN()
    await expect(loss.backward()).rejects.toMatchObject(failure)
  })

  test('a gradient that is not finite is named with its step', async () => {
    await using model = await tinyModel({ weights: 'fp32' })
    const optimizer = model.createOptimizer({ lr: 0 })
    const { ids } = batchOf(0)
    await optimizer.trainStep({ ids, labels: ids })
    // Gates and ups of about 1e18 whose product meets a down projection of zero: the loss is finite.
    const down = model.parameter('model.layers.1.mlp.down_proj.weight')!
    await down.write(new Float32Array(down.count))
    await model.parameter('model.layers.1.post_attention_layernorm.weight')!.write(new Float32Array(32).fill(1e18))
    await model.parameter('model.norm.weight')!.write(new Float32Array(32).fill(1e6))
    const failure = { code: 'NON_FINITE_GRADIENT', key: down.name, step: 2 }
    await (await model.loss(ids, ids)).backward()
    await expect(optimizer.step()).rejects.toMatchObject({ ...failure, key: expect.stringMatching(/^model\./) })
    await expect(optimizer.trainStep({ ids, labels: ids })).rejects.toMatchObject(failure)
  })

  test('skips a step whose norm or loss is an outlier, and touches nothing', async () => {
    const [skipping, plain] = [await tinyModel(), await tinyModel()]
    const [a, b] = [skipping.createOptimizer({ lr: 1e-2 }), plain.createOptimizer({ lr: 1e-2 })]
    const first = await a.trainStep(batchOf(0), { skipAboveLoss: 1e6 })
    expect(await b.trainStep(batchOf(0))).toEqual(first)
    expect([first.skipped, first.step]).toEqual([false, 1])

    const before = await weightsOf(skipping)
    const skipped = await a.trainStep(batchOf(1), { skipAboveLoss: 1e-3 })
    expect(skipped).toMatchObject({ skipped: true, step: 1, gradNorm: 0, updateRms: 0, changedCodes: 0, tokens: 22 })
    expect(skipped.loss).toBeGreaterThan(1)
    const { ids, labels } = batchOf(1)
    await (await skipping.loss(ids, labels)).backward()
    const outlier = await a.step({ skipAboveNorm: 1e-6 })
    expect(outlier).toMatchObject({ skipped: true, step: 1, clipScale: 1 })
    expect(outlier.gradNorm).toBeGreaterThan(1e-6)
    expect(await weightsOf(skipping)).toEqual(before)
    expect(await skipping.parameter('model.norm.weight')!.grad()).toBeNull()

    // What comes next is what comes next without them, clipping by the last norm included.
    const next = { maxGradNorm: first.gradNorm / 2, skipAboveLoss: 1e6 }
    expect(await a.trainStep(batchOf(2), next)).toEqual(await b.trainStep(batchOf(2), next))
    for (const model of [skipping, plain]) await (await model.loss(ids, labels)).backward()
    expect(await a.step({ skipAboveNorm: 1e6 })).toEqual(await b.step())
    expect(await weightsOf(skipping)).toEqual(await weightsOf(plain))
    await Promise.all([skipping.dispose(), plain.dispose()])
  })

  test('decay spares norms when asked to', async () => {
    const after = async (options: OptimizerOptions) => {
      await using model = await tinyModel({ weights: 'fp32' })
      await model.createOptimizer({ lr: 1e-2, ...options }).trainStep(batchOf(0))
      const read = (name: string) => model.parameter(name)!.read()
      return { norm: await read('model.norm.weight'), matrix: await read('model.layers.0.mlp.up_proj.weight') }
    }
    const [none, spared, all] = [
      await after({}),
      await after({ weightDecay: 0.5, decayNorms: false }),
      await after({ weightDecay: 0.5 }),
    ]
    expect(spared.norm).toEqual(none.norm)
    expect(all.norm).not.toEqual(none.norm)
    expect(spared.matrix).not.toEqual(none.matrix)
    expect(spared.matrix).toEqual(all.matrix)
  })

  test.each(['nvfp4', 'nvfp4+residual', 'bf16', 'fp32'] as const)(
    'values written between steps are what the next step starts from, weights %s',
    async (weights) => {
      const model = await tinyModel()
      const optimizer = model.createOptimizer({ weights, lr: 5e-3 })
      await optimizer.trainStep(batchOf(0))
      const parameter = model.parameter('model.layers.0.mlp.up_proj.weight')!
      await parameter.write((await parameter.read()).map((value) => 3 * value))
      const written = await parameter.read()
      await optimizer.trainStep(batchOf(1), { lr: 0 })
      expect(await parameter.read()).toEqual(written)
      await Promise.all([optimizer.dispose(), model.dispose()])
    },
  )

  describe('refuses', () => {
    let model: Qwen3Nvfp4Model
    beforeAll(async () => {
      model = await tinyModel()
    })
    afterAll(() => model.dispose())

    test.each([
      [{ lr: -1 }, 'Expected a finite number of at least 0 for lr but received -1'],
      [{ betas: [0.9] }, 'Expected two numbers for betas but received 1'],
      [{ betas: [0.9, 1] }, 'Expected a finite number of at least 0 and below 1 for betas[1] but received 1'],
      [{ eps: 0 }, 'Expected a finite number above 0 for eps but received 0'],
      [{ weights: 'int4' }, `for weights but received "int4"`],
      [{ moments: 'fp16' }, `for moments but received "fp16"`],
      [{ moments: 'fp32', state: 'nvfp4' }, "Expected state to equal moments 'fp32' but received 'nvfp4'"],
      [{ stepChunkRows: 0 }, 'Expected an integer of at least 1 for stepChunkRows but received 0'],
      [{ trainable: () => false }, 'Expected at least one parameter for trainable but received none'],
      [{ weight_decay: 1 }, 'did you mean weightDecay?'],
    ])('the options %j', (options, message) => {
      expect(() => model.createOptimizer(options as OptimizerOptions)).toThrow(message)
    })

    test('bad steps', async () => {
      const optimizer = model.createOptimizer()
      await expect(optimizer.step({ maxGradNorm: 0 })).rejects.toThrow(
        'Expected a finite number above 0 for maxGradNorm',
      )
      await expect(optimizer.step({ skipAboveNorm: -1 })).rejects.toThrow(
        'Expected a finite number above 0 for skipAboveNorm but received -1',
      )
      await expect(optimizer.trainStep(batchOf(0), { skipAboveLoss: 0 })).rejects.toThrow(
        'Expected a finite number above 0 for skipAboveLoss but received 0',
      )
      await expect(optimizer.step({ learningRate: 1 } as never)).rejects.toThrow('Expected one of lr, maxGradNorm')
      await expect(optimizer.trainStep({ ids: [1, 2] } as never)).rejects.toThrow('for labels but received undefined')
      await optimizer.dispose()
    })
  })
})
