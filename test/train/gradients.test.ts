import type { Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { crossEntropyGradient } from '../support/cross-entropy-gradient'
import { expectClose, idsOf, tinyConfig, tinyModel } from '../support/tiny-model'

describe('loss and backward', () => {
  let model: Qwen3Nvfp4Model
  beforeAll(async () => {
    model = await tinyModel({ weights: 'fp32' }, { ...tinyConfig, tieWordEmbeddings: false })
  })
  afterAll(() => model.dispose())

  const ids = [idsOf(7, 1), idsOf(7, 4)]
  const labels = ids.map((row, b) => row.map((id, t) => ((b + t) % 4 === 0 ? -100 : id)))

  test('the slope of every kind of parameter is the finite difference of the loss', async () => {
    const loss = await model.loss(ids, labels)
    await loss.backward()
    for (const parameter of model.parameters()) {
      const gradient = (await parameter.grad())!
      const values = await parameter.read()
      // The steepest element: a difference of two fp32 losses says little about a flat one.
      const i = gradient.reduce((best, g, j) => (Math.abs(g) > Math.abs(gradient[best]!) ? j : best), 0)
      const step = 4e-3
      const lossAt = async (value: number) => {
        await parameter.write(values.map((v, j) => (j === i ? value : v)))
        return (await model.loss(ids, labels)).value
      }
      const slope = ((await lossAt(values[i]! + step)) - (await lossAt(values[i]! - step))) / (2 * step)
      await parameter.write(values)
      expectClose([gradient[i]!], [slope], 2e-3, 2e-2)
    }
    await model.zeroGrad()
  })

  test('the gradients of two backward passes add up, each scaled', async () => {
    const parameter = model.parameter('model.layers.0.self_attn.q_proj.weight')!
    const gradientOf = async (scales: number[]) => {
      for (const scale of scales) await (await model.loss(ids, labels)).backward({ scale })
      const gradient = (await parameter.grad())!
      await model.zeroGrad()
      return gradient
    }
    const once = await gradientOf([1])
    expectClose(
      await gradientOf([0.25, 0.5]),
      once.map((g) => 0.75 * g),
      1e-7,
      1e-5,
    )
    expect(await parameter.grad()).toBeNull()
  })

  test('four micro-batches, each weighted by its labels, give the gradients of one batch of four', async () => {
    const four = [1, 4, 20, 33].map((seed) => idsOf(7, seed))
    // 6, 4, 2 and 1 labels that count, and one that has nothing before it.
    const targets = four.map((row, b) => row.map((id, t) => (t === 0 || t > 6 - 2 * b + (b > 2 ? 1 : 0) ? -100 : id)))
    const whole = await model.loss(four, targets)
    expect(whole.tokens).toBe(13)
    await whole.backward()
    const expected = new Map<string, Float32Array>()
    for (const parameter of model.parameters()) expected.set(parameter.name, (await parameter.grad())!)
    await model.zeroGrad()

    const total = targets.flatMap((row) => row.slice(1)).filter((label) => label !== -100).length
    let mean = 0
    for (const [b, row] of four.entries()) {
      const loss = await model.loss(row, targets[b]!)
      mean += (loss.value * loss.tokens) / total
      await loss.backward({ scale: loss.tokens / total })
    }
    expectClose([mean], [whole.value], 0, 1e-6)
    for (const parameter of model.parameters()) {
      expectClose((await parameter.grad())!, expected.get(parameter.name)!, 1e-6, 1e-5)
    }
    await model.zeroGrad()
  })

  test('labels that are shifted by hand give the same loss', async () => {
    const next = labels.map((row) => [...row.slice(1), -100])
    const [plain, shifted] = [await model.loss(ids, labels), await model.loss(ids, next, { shifted: true })]
    expect([shifted.value, shifted.tokens]).toEqual([plain.value, plain.tokens])
    await Promise.all([plain.dispose(), shifted.dispose()])
  })

  describe('of samples packed into one sequence', () => {
    const samples = [idsOf(9, 1), idsOf(4, 30), idsOf(17, 50)]
    const packed = samples.flat()
    const segments = samples.flatMap((sample, i) => sample.map(() => i))
    const gradients = async () =>
      new Map(await Promise.all([...model.parameters()].map(async (p) => [p.name, (await p.grad())!] as const)))
    const close = (actual: Map<string, Float32Array>, expected: Map<string, Float32Array>) => {
      for (const [name, values] of expected) expectClose(actual.get(name)!, values, 2e-6, 2e-5)
    }

    test.each(['all', 'cheap', 'none'] as const)('are the sums of each alone, recompute %s', async (recompute) => {
      const counts = samples.map((sample) => sample.length - 1)
      const total = counts.reduce((sum, count) => sum + count)
      let mean = 0
      for (const [i, sample] of samples.entries()) {
        const loss = await model.loss(sample, sample)
        expect(loss.tokens).toBe(counts[i])
        mean += (loss.value * counts[i]!) / total
        await loss.backward({ scale: counts[i]! / total })
      }
      const expected = await gradients()
      await model.zeroGrad()
      const loss = await model.loss(packed, packed, { segments, recompute })
      expect(loss.tokens).toBe(total)
      expectClose([loss.value], [mean], 0, 1e-6)
      await loss.backward()
      close(await gradients(), expected)
      await model.zeroGrad()
    })

    test('are the same of labels that are shifted by hand, and of a loss of the caller', async () => {
      await (await model.loss(packed, packed, { segments })).backward()
      const expected = await gradients()
      await model.zeroGrad()
      const shifted = samples.flatMap((sample) => [...sample.slice(1), -100])
      await (await model.loss(packed, shifted, { segments, shifted: true })).backward()
      const byHand = await gradients()
      await model.zeroGrad()
      expect(byHand).toEqual(expected)
      await using result = await model.forward(packed, { gradient: true, segments })
      const logits = await result.logits.toFloat32Array()
      await result.backward(crossEntropyGradient(logits, [[-100, ...shifted.slice(0, -1)]], 1, packed.length, 96))
      close(await gradients(), expected)
      await model.zeroGrad()
    })

    test('a fused step takes them too', async () => {
      const [a, b] = await Promise.all([tinyModel({ weights: 'fp32' }), tinyModel({ weights: 'fp32' })])
      const step = await a.createOptimizer({ lr: 1e-3 }).trainStep({ ids: packed, labels: packed, segments })
      const optimizer = b.createOptimizer({ lr: 1e-3 })
      const loss = await b.loss(packed, packed, { segments })
      await loss.backward()
      const { gradNorm } = await optimizer.step()
      expect([step.loss, step.tokens]).toEqual([loss.value, loss.tokens])
      expectClose([step.gradNorm], [gradNorm], 0, 1e-5)
      await Promise.all([a.dispose(), b.dispose()])
    })
  })

  describe('of a few parameters that train', () => {
    const gradientsOf = async (trained: (name: string) => boolean, recompute: 'all' | 'cheap' | 'none' = 'all') => {
      await using optimizer = model.createOptimizer({ trainable: trained })
      await (await model.loss(ids, labels, { recompute })).backward()
      const gradients = await Promise.all([...model.parameters()].map(async (p) => [p.name, await p.grad()] as const))
      await optimizer.zeroGrad()
      return new Map(gradients)
    }
    let whole: Map<string, Float32Array | null>
    beforeAll(async () => {
      whole = await gradientsOf(() => true)
    })
    afterAll(() => model.createOptimizer().dispose())

    test.each([
      ['the last layer', /layers\.1/],
      ['the norm of its queries', /layers\.1\.self_attn\.q_norm/],
      ['its down projection', /layers\.1\.mlp\.down_proj/],
      ['its second norm', /layers\.1\.post_attention/],
      ['its first norm', /layers\.1\.input/],
      ['the first layer', /layers\.0/],
      ['the final norm', /^model\.norm/],
      ['the head', /lm_head/],
      ['the embedding', /embed/],
    ])('%s has the gradients it has among all', async (_, pattern) => {
      for (const recompute of ['all', 'cheap', 'none'] as const) {
        const some = await gradientsOf((name) => pattern.test(name), recompute)
        for (const [name, gradient] of some) expect(gradient).toEqual(pattern.test(name) ? whole.get(name) : null)
      }
    })

    test('nothing is kept for layers below, unless their states are asked for', async () => {
      const long = Array.from({ length: 64 }, (_, i) => i)
      const held = async (trained: RegExp, options = {}) => {
        await using _ = model.createOptimizer({ trainable: (name) => trained.test(name) })
        const before = (await model.memory()).activations
        await using __ = await model.forward(long, { gradient: true, recompute: 'none', ...options })
        return (await model.memory()).activations - before
      }
      const [all, one, none] = [await held(/./), await held(/layers\.1/), await held(/^model\.norm/)]
      const state = 64 * 32 * 4
      expect(all - one).toBeGreaterThan(9 * state)
      expect(one).toBe(none + state)
      await using optimizer = model.createOptimizer({ trainable: (name) => name === 'model.norm.weight' })
      await using result = await model.forward(long, { gradient: true, hiddenStates: true })
      await using expected = await model.forward(long, { hiddenStates: true })
      for (const [i, hidden] of result.hiddenStates.entries()) {
        expect(await hidden.toFloat32Array()).toEqual(await expected.hiddenStates[i]!.toFloat32Array())
      }
      await optimizer.zeroGrad()
    })

    test('a parameter that came to train since has nothing to go back through', async () => {
      model.createOptimizer({ trainable: (name) => name.includes('layers.1') })
      const loss = await model.loss(ids, labels)
      model.createOptimizer()
      await expect(loss.backward()).rejects.toMatchObject({ code: 'STALE_GRADIENT' })
    })
  })

  test('a loss without counted labels is 0', async () => {
    const loss = await model.loss([1, 2], [-100, -100])
    expect([loss.value, loss.tokens]).toEqual([0, 0])
    await loss.dispose()
  })

  test('bf16 and NVFP4 gradients point where the fp32 ones do', async () => {
    const parameter = model.parameter('model.layers.1.mlp.up_proj.weight')!
    const gradients: Record<string, Float32Array> = {}
    for (const form of ['fp32', 'bf16', 'nvfp4'] as const) {
      await (await model.loss(ids, labels)).backward({ gradients: form })
      gradients[form] = (await parameter.grad())!
      await model.zeroGrad()
    }
    const cosine = (a: Float32Array, b: Float32Array) => {
      const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, v, i) => sum + v * y[i]!, 0)
      return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))
    }
    expect(cosine(gradients['fp32']!, gradients['bf16']!)).toBeGreaterThan(0.9999)
    expect(cosine(gradients['fp32']!, gradients['nvfp4']!)).toBeGreaterThan(0.95)
  })

  test('a forward pass is differentiated once', async () => {
    const loss = await model.loss(ids, labels)
    await loss.backward()
    await expect(loss.backward()).rejects.toMatchObject({ code: 'STALE_GRADIENT' })
    await model.zeroGrad()
  })

  test('weights that changed in between make the gradient stale', async () => {
    const loss = await model.loss(ids, labels)
    const norm = model.parameter('model.norm.weight')!
    await norm.write(await norm.read())
    await expect(loss.backward()).rejects.toMatchObject({ code: 'STALE_GRADIENT' })
    expect(await norm.grad()).toBeNull()
  })

  test('a gradient that is not finite is refused before anything is stored', async () => {
    const result = await model.forward(ids, { gradient: true })
    const dLogits = new Float32Array(2 * 7 * 96)
    dLogits[5] = Infinity
    await expect(result.backward(dLogits)).rejects.toMatchObject({ code: 'NON_FINITE_GRADIENT', key: 'dLogits' })
    expect(await model.parameter('model.norm.weight')!.grad()).toBeNull()
    await result.dispose()
  })

  test.each([
    [[1, 2, 3], [1, 2], 'Expected i32[1, 3] for labels but received i32[1, 2]'],
    [[1, 2], [1, 96], 'Expected an integer from 0 to 95 or -100 for labels[1] but received 96'],
    [[1, 2], [1, -1], 'Expected an integer from 0 to 95 or -100 for labels[1] but received -1'],
  ])('refuses ids %j with labels %j', async (someIds, someLabels, message) => {
    await expect(model.loss(someIds, someLabels)).rejects.toThrow(message)
  })

  test('refuses dLogits of another shape', async () => {
    const result = await model.forward([1, 2], { gradient: true })
    await expect(result.backward(new Float32Array(96))).rejects.toThrow(
      'Expected f32[1, 2, 96] for dLogits but received f32[96]',
    )
    await result.dispose()
  })
})

describe('hiddenLoss', () => {
  const [H, T] = [tinyConfig.hiddenSize, 9]
  const ids = [idsOf(T, 1), idsOf(T, 12)]
  const target = Float32Array.from({ length: 2 * T * H }, (_, i) => Math.sin(i))

  test.each([true, false])('is the mean distance and has its slopes, tied %s', async (tieWordEmbeddings) => {
    await using model = await tinyModel({ weights: 'fp32' }, { ...tinyConfig, tieWordEmbeddings })
    const attentionMask = ids.map((row, b) => row.map((_, t) => (b === 1 && t > 6 ? 0 : 1)))
    const options = { attentionMask, segments: ids.map((row) => row.map((_, t) => (t < 4 ? 0 : 1))) }
    const states = await model.forward(ids, { hiddenStates: true, ...options })
    const hidden = await states.hiddenStates.at(-1)!.toFloat32Array()
    const visible = (i: number) => attentionMask.flat()[Math.floor(i / H)] === 1
    const sum = hidden.reduce((total, h, i) => total + (visible(i) ? Math.abs(h - target[i]!) : 0), 0)
    const loss = await model.hiddenLoss(ids, target, options)
    expect(loss.tokens).toBe(2 * T - 2)
    expectClose([loss.value], [sum / ((2 * T - 2) * H)], 0, 1e-6)
    await loss.backward({ scale: 2 })

    for (const parameter of model.parameters()) {
      const gradient = await parameter.grad()
      if (parameter.name === 'lm_head.weight') {
        expect(gradient).toBeNull()
        continue
      }
      const values = await parameter.read()
      const i = gradient!.reduce((best, g, j) => (Math.abs(g) > Math.abs(gradient![best]!) ? j : best), 0)
      const step = 1e-3
      const lossAt = async (value: number) => {
        await parameter.write(values.map((v, j) => (j === i ? value : v)))
        return (await model.hiddenLoss(ids, target, options)).value
      }
      const slope = ((await lossAt(values[i]! + step)) - (await lossAt(values[i]! - step))) / step
      await parameter.write(values)
      // A kink of |x| within the step adds 2 / (T H) at most.
      expectClose([gradient![i]!], [slope], 5e-3, 3e-2)
    }
  })

  test('a target that is not finite is found before anything is stored', async () => {
    await using model = await tinyModel()
    const loss = await model.hiddenLoss(
      ids,
      target.map((x, i) => (i === 40 ? NaN : x)),
    )
    expect(loss.value).toBeNaN()
    await expect(loss.backward()).rejects.toMatchObject({ code: 'NON_FINITE_GRADIENT' })
    expect(await model.parameter('model.norm.weight')!.grad()).toBeNull()
  })

  test('refuses a target of another shape', async () => {
    await using model = await tinyModel()
    await expect(model.hiddenLoss(ids, new Float32Array(5))).rejects.toThrow(
      'Expected f32[2, 9, 32] for target but received f32[5]',
    )
  })
})

describe('linearSte', () => {
  let model: Qwen3Nvfp4Model
  beforeAll(async () => {
    model = await tinyModel()
  })
  afterAll(() => model.dispose())

  const wave = (count: number, seed: number) => Float32Array.from({ length: count }, (_, i) => Math.sin(seed + i * 1.7))
  const [T, K, N] = [3, 32, 5]
  const [x, w, dy] = [wave(T * K, 1), wave(N * K, 2), wave(T * N, 3)]

  /** y = x wᵀ, dx = dy w, dw = dyᵀ x in double. */
  const surrogate = (weight: ArrayLike<number>) => {
    const [y, dx, dw] = [new Float64Array(T * N), new Float64Array(T * K), new Float64Array(N * K)]
    for (let t = 0; t < T; t++)
      for (let n = 0; n < N; n++)
        for (let k = 0; k < K; k++) {
          y[t * N + n]! += x[t * K + k]! * weight[n * K + k]!
          dx[t * K + k]! += dy[t * N + n]! * weight[n * K + k]!
          dw[n * K + k]! += dy[t * N + n]! * x[t * K + k]!
        }
    return { y, dx, dw }
  }

  test('y and both gradients are those of the declared surrogate', async () => {
    // Q(w) by the identity as input: the columns of y are then the rows of Q(w).
    const identity = Float32Array.from({ length: K * K }, (_, i) => (i % (K + 1) === 0 ? 1 : 0))
    const probe = await model.linearSte(identity, w, { rows: N, cols: K })
    const quantized = Float32Array.from({ length: N * K }, (_, i) => probe.y[(i % K) * N + Math.floor(i / K)]!)
    expectClose(quantized, w, 1 / 6 + 0.02)
    expect(quantized).not.toEqual(w)

    const expected = surrogate(quantized)
    const result = await model.linearSte(x, w, { rows: N, cols: K })
    const { dInput, dWeight } = await result.backward(dy)
    expectClose(result.y, expected.y, 1e-5, 1e-5)
    expectClose(dInput, expected.dx, 1e-5, 1e-5)
    expectClose(dWeight, expected.dw, 1e-5, 1e-5)
    await Promise.all([result.dispose(), probe.dispose()])
    await expect(result.backward(dy)).rejects.toMatchObject({ code: 'DISPOSED' })
  })

  test('a matrix of the model is used as it is stored, and refuses to be stale', async () => {
    const parameter = model.parameter('model.layers.0.mlp.up_proj.weight')!
    const input = wave(32, 4)
    const result = await model.linearSte(input, parameter.name)
    const weight = await parameter.read()
    const y = Array.from({ length: 64 }, (_, n) => input.reduce((sum, v, k) => sum + v * weight[n * 32 + k]!, 0))
    expectClose(result.y, y, 1e-5, 1e-5)
    await parameter.write(weight)
    await expect(result.backward(new Float32Array(64))).rejects.toMatchObject({ code: 'STALE_GRADIENT' })
    await result.dispose()
  })

  test.each([
    [x, w, {}, 'Expected rows and cols of the weight for options'],
    [x, w, { rows: 5, cols: 24 }, 'Expected a multiple of 16 for cols but received 24'],
    [x, w, { rows: 4, cols: 32 }, 'Expected f32[4, 32] for weight but received f32[160]'],
    [wave(33, 1), w, { rows: 5, cols: 32 }, 'Expected f32[2, 32] for input but received f32[33]'],
    [x, 'no such', {}, 'Expected the name of a matrix of the model for weight but received "no such"'],
    [x, 'model.norm.weight', {}, 'Expected the name of a matrix of the model for weight'],
    [[1], w, { rows: 5, cols: 32 }, 'for input but received an array of 1'],
  ])('refuses %#', async (input, weight, options, message) => {
    await expect(model.linearSte(input as Float32Array, weight, options)).rejects.toThrow(message)
  })
})
