/** Needs a CUDA device: `npm run test:gpu`. Losses and gradients of a whole model against the CPU. */
import type { InitializeOptions, Qwen3Config, Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { crossEntropyGradient } from '../support/cross-entropy-gradient'
import {
  cpuModel,
  denseTwin,
  describeOnGpu,
  gpuConfig,
  gpuModel,
  gradientBounds,
  gradientsOf,
  type Tensors,
  tokensOf,
  trainingIds,
  trainingLabels,
  untiedConfig,
} from '../support/gpu'
import { expectSameBytes, seededValues } from '../support/native-ops'
import { type Bounds, expectSimilar } from '../support/similarity'

const [ids, labels] = [trainingIds, trainingLabels]
const [B, T] = [ids.length, ids[0]!.length]
const attentionMask = ids.map((row, b) => row.map((_, t) => (b === 1 && t < 4 ? 0 : 1)))

function expectGradients(actual: Tensors, expected: Tensors, bounds: Bounds = gradientBounds): void {
  expect(Object.keys(actual)).toEqual(Object.keys(expected))
  for (const [name, gradient] of Object.entries(expected)) expectSimilar(name, actual[name]!, gradient, bounds)
}

describeOnGpu('loss and backward', () => {
  const cases: [string, InitializeOptions, Qwen3Config][] = [
    ['NVFP4, tied', {}, gpuConfig],
    ['NVFP4 of one level, untied', { scales: 'one-level' }, untiedConfig],
    ['bf16, tied', { weights: 'bf16' }, gpuConfig],
    ['fp32, untied', { weights: 'fp32' }, untiedConfig],
  ]
  describe.each(cases)('of %s weights', (_, options, config) => {
    let gpu: Qwen3Nvfp4Model
    let cpu: Qwen3Nvfp4Model
    let value: number
    let expected: Tensors
    beforeAll(async () => {
      gpu = await gpuModel(options, config)
      cpu = await cpuModel(options, config)
      const loss = await cpu.loss(ids, labels, { attentionMask })
      value = loss.value
      await loss.backward()
      expected = await gradientsOf(cpu)
      await cpu.zeroGrad()
    })
    afterAll(async () => {
      for (const model of [gpu, cpu]) await model?.dispose()
    })

    test.each(['all', 'cheap', 'none'] as const)('are those of the CPU, recompute %s', async (recompute) => {
      const loss = await gpu.loss(ids, labels, { attentionMask, recompute })
      // Logits off by 1 %, independently of token to token, move their mean loss by far less than 1 %.
      expect(Math.abs(loss.value / value - 1)).toBeLessThan(2e-3)
      expect(loss.tokens).toBe(labels.flatMap((row) => row.slice(1)).filter((label) => label !== -100).length)
      await loss.backward()
      expectGradients(await gradientsOf(gpu), expected)
      await gpu.zeroGrad()
    })

    test('are those of the CPU for few tokens', async () => {
      const few = [tokensOf(7, 3)]
      for (const model of [cpu, gpu]) await (await model.loss(few, few)).backward()
      expectGradients(await gradientsOf(gpu), await gradientsOf(cpu))
      for (const model of [cpu, gpu]) await model.zeroGrad()
    })

    test('are those of the CPU for samples packed into one sequence', async () => {
      const segments = ids.map((row, b) => row.map((_, t) => Math.floor(t / (b === 0 ? 10 : 3))))
      const losses = []
      for (const model of [gpu, cpu]) {
        const loss = await model.loss(ids, labels, { segments, attentionMask })
        losses.push(loss)
        await loss.backward()
      }
      expect(losses[0]!.tokens).toBe(losses[1]!.tokens)
      expect(Math.abs(losses[0]!.value / losses[1]!.value - 1)).toBeLessThan(2e-3)
      expectGradients(await gradientsOf(gpu), await gradientsOf(cpu))
      for (const model of [gpu, cpu]) await model.zeroGrad()
    })

    test('of a few parameters that train have the bytes they have among all', async () => {
      await (await gpu.loss(ids, labels)).backward()
      const all = await gradientsOf(gpu)
      await gpu.zeroGrad()
      for (const pattern of [/layers\.2/, /layers\.2\.self_attn\.q_norm/, /layers\.1\.mlp\.down/, /^model\.norm/]) {
        await using optimizer = gpu.createOptimizer({ trainable: (name) => pattern.test(name) })
        await (await gpu.loss(ids, labels)).backward()
        const some = await gradientsOf(gpu)
        expect(Object.keys(some)).toEqual(Object.keys(all).filter((name) => pattern.test(name)))
        for (const [name, gradient] of Object.entries(some)) expectSameBytes(gradient, all[name]!)
        await optimizer.zeroGrad()
      }
      await gpu.createOptimizer().dispose()
    })

    test('recompute changes no byte', async () => {
      const runs = []
      for (const recompute of ['all', 'cheap', 'none'] as const) {
        await (await gpu.loss(ids, labels, { recompute })).backward()
        runs.push(await gradientsOf(gpu))
        await gpu.zeroGrad()
      }
      expectSameBytes(runs[1]!, runs[0]!)
      expectSameBytes(runs[2]!, runs[0]!)
    })

    test('are those of the CPU for the distance of hidden states', async () => {
      const target = seededValues(B * T * config.hiddenSize, 5)
      const values = []
      for (const model of [gpu, cpu]) {
        const loss = await model.hiddenLoss(ids, target, { attentionMask })
        values.push(loss.value)
        await loss.backward()
      }
      expect(Math.abs(values[0]! / values[1]! - 1)).toBeLessThan(2e-3)
      // States within an error of their target have the other sign on one of the two.
      expectGradients(await gradientsOf(gpu), await gradientsOf(cpu), { cosine: 0.98, normRatio: 0.05 })
      for (const model of [gpu, cpu]) await model.zeroGrad()
    })

    test('of the cross-entropy as a loss of the caller are the same', async () => {
      await using result = await gpu.forward(ids, { gradient: true, attentionMask })
      const logits = await result.logits.toFloat32Array()
      await result.backward(crossEntropyGradient(logits, labels, B, T, config.vocabSize))
      expectGradients(await gradientsOf(gpu), expected)
      await gpu.zeroGrad()
    })
  })

  test('see the residual of NVFP4 weights', async () => {
    await using gpu = await gpuModel()
    await using optimizer = gpu.createOptimizer({ lr: 3e-3, weights: 'nvfp4+residual' })
    for (let i = 0; i < 3; i++) await optimizer.trainStep({ ids, labels })
    await using twin = await denseTwin(gpu)
    for (const model of [gpu, twin]) await (await model.loss(ids, labels)).backward({ gradients: 'fp32' })
    expectGradients(await gradientsOf(gpu), await gradientsOf(twin))
  })

  test.each([1, 7, 8, 9, 64, 65, 130])('take %i tokens', async (count) => {
    await using gpu = await gpuModel()
    await using cpu = await cpuModel()
    for (const model of [gpu, cpu]) {
      const sequence = tokensOf(count, 3)
      await (await model.loss(sequence, sequence, { shifted: true })).backward()
    }
    const [actual, expected] = [await gradientsOf(gpu), await gradientsOf(cpu)]
    for (const name of Object.keys(expected)) {
      // A key that is alone has all the attention, whatever query and key are: their gradients are zero but for rounding.
      if (count > 1 || !/self_attn\.[qk]_/.test(name)) continue
      delete actual[name]
      delete expected[name]
    }
    expectGradients(actual, expected)
  })

  test.each([
    ['fp32', { cosine: 0.999, normRatio: 0.02 }],
    // Two roundings of relative error 2^-9 at most.
    ['bf16', { cosine: 0.999, normRatio: 0.02 }],
    // The error of a sum of two micro-batches is about 0.16 of it (docs/numerics.md): a cosine of 0.987.
    ['nvfp4', { cosine: 0.97, normRatio: 0.05 }],
  ] as const)('are summed over two micro-batches in %s', async (gradients, bounds) => {
    await using gpu = await gpuModel()
    await using cpu = await cpuModel()
    for (const [model, form] of [
      [gpu, gradients],
      [cpu, 'fp32'],
    ] as const) {
      for (const b of [0, 1]) await (await model.loss(ids[b]!, labels[b]!)).backward({ gradients: form, scale: 0.5 })
    }
    expectGradients(await gradientsOf(gpu), await gradientsOf(cpu), bounds)
  })

  test('refuse a gradient that is not finite before anything is stored', async () => {
    await using model = await gpuModel()
    for (const value of [NaN, Infinity, -Infinity]) {
      await using result = await model.forward(ids, { gradient: true })
      const dLogits = new Float32Array(B * T * gpuConfig.vocabSize)
      dLogits[dLogits.length - 3] = value
      await expect(result.backward(dLogits)).rejects.toMatchObject({ code: 'NON_FINITE_GRADIENT' })
      expect(await gradientsOf(model)).toEqual({})
    }
    await (await model.loss(ids, labels)).backward()
    expect(Object.keys(await gradientsOf(model))).toHaveLength([...model.parameters()].length)
  })

  test('refuse weights that changed in between', async () => {
    await using model = await gpuModel()
    await using loss = await model.loss(ids, labels)
    const norm = model.parameter('model.norm.weight')!
    await norm.write(await norm.read())
    await expect(loss.backward()).rejects.toMatchObject({ code: 'STALE_GRADIENT' })
  })
})
