/** Needs a CUDA device: `npm run test:gpu`. Updates of a whole model against the CPU, and that it learns. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { OptimizerOptions } from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import {
  cpuModel,
  describeOnGpu,
  gpuConfig,
  gpuModel,
  tokensOf,
  trainingIds,
  trainingLabels,
  untiedConfig,
  weightsOf,
} from '../support/gpu'
import { expectSameBytes, seededValues } from '../support/native-ops'

const [ids, labels] = [trainingIds, trainingLabels]

const moments = ['nvfp4', 'int8', 'bf16', 'fp32'] as const
const masters = ['nvfp4', 'nvfp4+residual', 'bf16', 'fp32'] as const
const everyMode = masters.flatMap((weights) => moments.map((state) => ({ weights, state })))

describeOnGpu('training', () => {
  test.each(everyMode)('learns one batch in 20 steps with $weights weights and $state states', async (options) => {
    await using model = await gpuModel()
    await using optimizer = model.createOptimizer({ lr: 2e-3, ...options })
    const losses = []
    for (let step = 1; step <= 20; step++) {
      const stats = await optimizer.trainStep({ ids, labels })
      expect(stats).toMatchObject({ step, clipScale: 1 })
      expect(stats.gradNorm).toBeGreaterThan(0)
      expect(stats.updateRms).toBeLessThan(3)
      losses.push(stats.loss)
    }
    expect(losses.at(-1)).toBeLessThan(losses[0]! * 0.7)
    // A model that learned serves what it learned.
    await using loss = await model.loss(ids, labels)
    expect(loss.value).toBeLessThan(losses[0]! * 0.7)
  })

  test.each(['fp32', 'bf16', 'fp16'] as const)('learns with %s storage', async (weights) => {
    await using model = await gpuModel({ weights }, untiedConfig)
    await using optimizer = model.createOptimizer({ lr: 1e-3, state: 'fp32' })
    const first = (await optimizer.trainStep({ ids, labels })).loss
    for (let step = 2; step < 20; step++) await optimizer.trainStep({ ids, labels }, { recompute: 'none' })
    expect((await optimizer.trainStep({ ids, labels })).loss).toBeLessThan(first * 0.7)
  })

  test.each(['fp32', 'bf16', 'nvfp4'] as const)('learns by backward and step with %s gradients', async (gradients) => {
    await using model = await gpuModel()
    await using optimizer = model.createOptimizer({ lr: 2e-3, gradients, stepChunkRows: 100 })
    const losses = []
    for (let step = 1; step <= 20; step++) {
      const loss = await model.loss(ids, labels)
      losses.push(loss.value)
      await loss.backward()
      expect(await optimizer.step()).toMatchObject({ step })
    }
    expect(losses.at(-1)).toBeLessThan(losses[0]! * 0.7)
  })

  test('takes steps that are near those of the CPU', async () => {
    const run = async (make: typeof gpuModel) => {
      await using model = await make({ weights: 'fp32' }, gpuConfig)
      await using optimizer = model.createOptimizer({ lr: 1e-3, state: 'fp32', weightDecay: 0.01 })
      const steps = []
      for (let i = 0; i < 5; i++) steps.push(await optimizer.trainStep({ ids, labels }))
      return steps
    }
    const [actual, expected] = [await run(gpuModel), await run(cpuModel)]
    for (const [i, { loss, gradNorm, updateRms }] of expected.entries()) {
      expect(Math.abs(actual[i]!.loss / loss - 1)).toBeLessThan(0.01)
      expect(Math.abs(actual[i]!.gradNorm / gradNorm - 1)).toBeLessThan(0.02)
      expect(Math.abs(actual[i]!.updateRms / updateRms - 1)).toBeLessThan(0.02)
    }
  })

  test('clips by the norm', async () => {
    await using model = await gpuModel()
    await using cpu = await cpuModel()
    const norms = []
    for (const each of [model, cpu]) {
      await using optimizer = each.createOptimizer({ lr: 0 })
      await (await each.loss(ids, labels)).backward()
      const { gradNorm, clipScale } = await optimizer.step({ maxGradNorm: 0.01 })
      expect(clipScale).toBeCloseTo(0.01 / gradNorm, 5)
      // A fused step knows the norm of the step before it.
      const fused = await optimizer.trainStep({ ids, labels }, { maxGradNorm: 0.02 })
      expect(fused.clipScale).toBeCloseTo(0.02 / gradNorm, 5)
      expect(Math.abs(fused.gradNorm / gradNorm - 1)).toBeLessThan(0.01)
      norms.push(gradNorm)
    }
    expect(Math.abs(norms[0]! / norms[1]! - 1)).toBeLessThan(0.02)
  })

  test.each([
    {},
    { weights: 'nvfp4+residual', state: 'int8' },
    { weights: 'fp32', state: 'fp32' },
  ] as OptimizerOptions[])('gives equal bytes twice, whatever the chunk size, with %j', async (options) => {
    const run = async (stepChunkRows?: number) => {
      await using model = await gpuModel({}, untiedConfig)
      await using optimizer = model.createOptimizer({ lr: 1e-3, ...options, stepChunkRows })
      const stats = []
      for (let i = 0; i < 3; i++) stats.push(await optimizer.trainStep({ ids, labels }))
      const path = join(temporaryFolder(), 'state')
      await optimizer.save(path)
      return { stats, bytes: { ...(await weightsOf(model)), state: readFileSync(path) } }
    }
    const first = await run()
    const second = await run()
    expect(second.stats).toEqual(first.stats)
    expectSameBytes(second.bytes, first.bytes)
    // Rows in other pieces are other products, whose sums may run in another order: near, not equal.
    const pieces = await run(128)
    expect(Math.abs(pieces.stats[2]!.loss / first.stats[2]!.loss - 1)).toBeLessThan(0.01)
  })

  /**
   * The one gradient that is the same number on every device: that of a head behind layers that add nothing, whose inputs are
   * exactly ±1 (embedding rows of ±0.375 under a norm that divides by 0.375), for dLogits of a few bits.
   */
  describe('from the same gradient and state', () => {
    const config = { ...untiedConfig, numHiddenLayers: 1, rmsNormEps: 1e-30 }
    const head = 'lm_head.weight'
    const run = async (make: typeof gpuModel, options: OptimizerOptions) => {
      await using model = await make({}, config)
      const { hiddenSize: H, vocabSize: V } = config
      await model
        .parameter('model.embed_tokens.weight')!
        .write(seededValues(V * H, 5).map((x) => (x < 0 ? -0.375 : 0.375)))
      for (const part of ['self_attn.o_proj', 'mlp.down_proj']) {
        const parameter = model.parameter(`model.layers.0.${part}.weight`)!
        await parameter.write(new Float32Array(parameter.count))
      }
      await using optimizer = model.createOptimizer({
        lr: 0.01,
        weightDecay: 0.01,
        seed: 3,
        ...options,
        trainable: (name) => name === head,
      })
      for (let step = 0; step < 3; step++) {
        await using result = await model.forward(tokensOf(6, step), { gradient: true, hiddenStates: true })
        for (const x of await result.hiddenStates.at(-1)!.toFloat32Array())
          if (Math.abs(x) !== 1) throw new Error(`${x}`)
        await result.backward(seededValues(6 * V, step).map((x) => Math.round(x * 64) / 256))
        await optimizer.step()
      }
      const path = join(temporaryFolder(), 'state')
      await optimizer.save(path)
      return { weights: await model.parameter(head)!.read(), state: readFileSync(path) }
    }
    test.each(everyMode)(
      'has the codes and state of the CPU with $weights weights and $state states',
      async (options) => {
        expectSameBytes(await run(gpuModel, options), await run(cpuModel, options))
      },
    )
  })

  /**
   * Gates and ups of 1e18 whose product meets a down projection of zero: the loss is finite, the gradient of that projection,
   * the first matrix after the head, is not.
   */
  test('stops at the first gradient that is not finite, and leaves what comes after it as it was', async () => {
    await using model = await gpuModel({ weights: 'fp32' }, untiedConfig)
    await using optimizer = model.createOptimizer({ lr: 1e-3, state: 'fp32' })
    const last = `model.layers.${untiedConfig.numHiddenLayers - 1}`
    const down = model.parameter(`${last}.mlp.down_proj.weight`)!
    const post = model.parameter(`${last}.post_attention_layernorm.weight`)!
    const final = model.parameter('model.norm.weight')!
    await down.write(new Float32Array(down.count))
    await post.write(new Float32Array(post.count).fill(1e18))
    await final.write(new Float32Array(final.count).fill(1e6))
    const before = await weightsOf(model)
    await expect(optimizer.trainStep({ ids, labels })).rejects.toMatchObject({
      code: 'NON_FINITE_GRADIENT',
      key: down.name,
      step: 1,
      message: expect.stringContaining(down.name),
    })
    const after = await weightsOf(model)
    expect(() => expectSameBytes(after, before)).toThrow('lm_head.weight')
    // What came before it has been updated: the head and the final norm.
    for (const name of ['lm_head.weight', final.name]) after[name] = before[name]!
    expectSameBytes(after, before)
    await post.write(new Float32Array(post.count).fill(1))
    await final.write(new Float32Array(final.count).fill(1))
    expect((await optimizer.trainStep({ ids, labels })).loss).toBeGreaterThan(0)
  })

  test('skips a step whose loss or norm is an outlier, and touches nothing', async () => {
    await using model = await gpuModel()
    await using optimizer = model.createOptimizer({ lr: 1e-3 })
    await optimizer.trainStep({ ids, labels })
    const before = await weightsOf(model)
    expect(await optimizer.trainStep({ ids, labels }, { skipAboveLoss: 1e-3 })).toMatchObject({
      skipped: true,
      step: 1,
    })
    await (await model.loss(ids, labels)).backward()
    expect(await optimizer.step({ skipAboveNorm: 1e-9 })).toMatchObject({ skipped: true, step: 1 })
    expectSameBytes(await weightsOf(model), before)
    expect(await optimizer.trainStep({ ids, labels }, { skipAboveLoss: 1e6 })).toMatchObject({
      skipped: false,
      step: 2,
    })
  })

  test('refuses a loss that is not finite before anything changed', async () => {
    await using model = await gpuModel()
    await using optimizer = model.createOptimizer()
    const norm = model.parameter('model.norm.weight')!
    const values = await norm.read()
    await norm.write(values.map(() => 3e38))
    const before = await weightsOf(model)
    const failure = { code: 'NON_FINITE_GRADIENT', key: 'model.norm', step: 1 }
    await expect(optimizer.trainStep({ ids, labels })).rejects.toMatchObject(failure)
    expectSameBytes(await weightsOf(model), before)
    await norm.write(values)
    await expect(optimizer.trainStep({ ids, labels })).resolves.toMatchObject({ tokens: expect.any(Number) })
  })
})
