import { compareForwardPaths, type Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { expectClose, idsOf, tinyConfig, tinyModel } from '../support/tiny-model'

describe('forward', () => {
  let model: Qwen3Nvfp4Model
  beforeAll(async () => {
    model = await tinyModel()
  })
  afterAll(() => model.dispose())

  const logitsOf = async (ids: Parameters<typeof model.forward>[0], options = {}) => {
    const result = await model.forward(ids, { logits: 'all', ...options })
    return result.logits.toFloat32Array()
  }

  test('NVFP4 weights give the logits of the dense model with the dequantised weights', async () => {
    const dense = await tinyModel({ weights: 'fp32' })
    for (const parameter of dense.parameters()) await parameter.write(await model.parameter(parameter.name)!.read())
    const expected = await dense.forward(idsOf(17), { logits: 'all' })
    expectClose(await logitsOf(idsOf(17)), await expected.logits.toFloat32Array(), 1e-5, 1e-5)
    await dense.dispose()
  })

  test('the reference path, the training path and the cached path agree in every layer', async () => {
    const comparison = await compareForwardPaths(model, idsOf(21), { chunkTokens: 4, topK: 3 })
    expect(comparison.firstDivergence).toBeNull()
    expect(comparison.sameTopToken).toBe(true)
    for (const path of [comparison.reference, comparison.training, comparison.cached]) {
      expect(path.layers).toHaveLength(tinyConfig.numHiddenLayers + 1)
      expect(path.top).toHaveLength(3)
      expect([path.nanCount, path.infinityCount]).toEqual([0, 0])
      for (const { cosine } of path.layers) expect(cosine).toBeGreaterThan(1 - 1e-6)
    }
  })

  test('a divergence is found in the layer where it begins', async () => {
    const comparison = await compareForwardPaths(model, idsOf(21), { tolerance: 1e-12 })
    expect(comparison.firstDivergence?.layer).toBeGreaterThan(0)
    expect(comparison.firstDivergence?.relativeError).toBeLessThan(1e-5)
  })

  test('a batch gives each sequence the logits it has alone', async () => {
    const [a, b] = [idsOf(9, 1), idsOf(9, 5)]
    const both = await logitsOf([a, b])
    expectClose(both.subarray(0, both.length / 2), await logitsOf(a), 1e-5, 1e-5)
    expectClose(both.subarray(both.length / 2), await logitsOf(b), 1e-5, 1e-5)
  })

  test("'last' is the last row of 'all'", async () => {
    const all = await logitsOf(idsOf(5))
    const last = await (await model.forward(idsOf(5))).logits.toFloat32Array()
    expectClose(last, all.subarray(4 * tinyConfig.vocabSize), 1e-6, 1e-6)
  })

  test('padding that is masked does not change the tokens behind it', async () => {
    const ids = idsOf(6)
    const padded = [...ids.slice(0, 2), 90, ...ids.slice(2)]
    const mask = padded.map((_, i) => (i === 2 ? 0 : 1))
    const other = padded.map((id, i) => (i === 2 ? 12 : id))
    const V = tinyConfig.vocabSize
    const [a, b] = [await logitsOf(padded, { attentionMask: mask }), await logitsOf(other, { attentionMask: mask })]
    expect(a.subarray(3 * V)).toEqual(b.subarray(3 * V))
    expect(a.subarray(2 * V, 3 * V)).not.toEqual(b.subarray(2 * V, 3 * V))
    expect(await logitsOf(padded)).not.toEqual(await logitsOf(other))
  })

  describe('of samples packed into one sequence', () => {
    const lengths = [9, 1, 70, 12]
    const samples = lengths.map((length, i) => idsOf(length, 3 * i + 1))
    const packed = samples.flat()
    const segments = lengths.flatMap((length, i) => Array<number>(length).fill(i % 2 === 0 ? 5 : -1))
    const V = tinyConfig.vocabSize

    test('gives each the logits it has alone', async () => {
      const other = [...idsOf(90, 40), ...packed.slice(90)]
      const both = await logitsOf([packed, other], { segments: [segments, segments.map(() => 0)] })
      const flat = await logitsOf([packed, other], {
        segments: Int32Array.from([...segments, ...segments.map(() => 0)]),
      })
      expect(flat).toEqual(both)
      let first = 0
      for (const sample of samples) {
        const rows = both.subarray(first * V, (first + sample.length) * V)
        expectClose(rows, await logitsOf(sample), 1e-5, 1e-5)
        first += sample.length
      }
      expectClose(both.subarray(first * V), await logitsOf(other), 1e-5, 1e-5)
    })

    test('gives each the very bytes it has alone where the products are the same', async () => {
      // The reference multiplies token by token, so that only attention and positions could tell samples apart.
      const whole = await logitsOf(packed, { segments, reference: true })
      let first = 0
      for (const sample of samples) {
        expect(whole.subarray(first * V, (first + sample.length) * V)).toEqual(
          await logitsOf(sample, { reference: true }),
        )
        first += sample.length
      }
    })

    test('hides padding inside a segment too', async () => {
      const attentionMask = segments.map((_, i) => (i === 12 || i === 85 ? 0 : 1))
      const whole = await logitsOf(packed, { segments, attentionMask, reference: true })
      let first = 0
      for (const sample of samples) {
        const own = attentionMask.slice(first, first + sample.length)
        const alone = await logitsOf(sample, { attentionMask: own, reference: true })
        expect(whole.subarray(first * V, (first + sample.length) * V)).toEqual(alone)
        first += sample.length
      }
    })
  })

  test('two runs, and any number of threads, give equal bytes', async () => {
    const first = await logitsOf(idsOf(33))
    expect(await logitsOf(idsOf(33))).toEqual(first)
    const single = await tinyModel({ threads: 1 })
    const result = await single.forward(idsOf(33), { logits: 'all' })
    expect(await result.logits.toFloat32Array()).toEqual(first)
    await single.dispose()
  })

  test('results have their shapes', async () => {
    const result = await model.forward([idsOf(3), idsOf(3, 2)], { logits: 'all', hiddenStates: true })
    expect(result.logits.shape).toEqual([2, 3, 96])
    expect(result.hiddenStates.map(({ shape }) => shape)).toEqual([
      [2, 3, 32],
      [2, 3, 32],
      [2, 3, 32],
    ])
    expect((await result.logits.toFloat32Array({ begin: 1, end: 2 })).length).toBe(96)
    const none = await model.forward(idsOf(3), { logits: 'none' })
    expect(() => none.logits).toThrow("Expected logits 'all' or 'last'")
  })

  test.each([
    [[], 'Expected at least one token for ids but received an array of 0'],
    [[1, 96], 'Expected an integer from 0 to 95 for ids[1] but received 96'],
    [[1, -1], 'Expected an integer from 0 to 95 for ids[1] but received -1'],
    [[1.5], 'Expected an integer from 0 to 95 for ids[0] but received 1.5'],
    [['a'], 'Expected an integer from 0 to 95 for ids[0] but received "a"'],
    ['text', 'Expected an Int32Array or an array of integers for ids but received "text"'],
    [new Float32Array(3), 'Expected an Int32Array or an array of integers for ids but received f32[3]'],
    [[[1, 2], [3]], 'Expected 2 elements as in ids[0] for ids[1] but received 1'],
  ])('refuses ids %j', async (ids, message) => {
    await expect(model.forward(ids as number[])).rejects.toThrow(message)
  })

  test.each([
    [{ logit: 'all' }, 'did you mean logits?'],
    [{ logits: 'some' }, `Expected 'all' | 'last' | 'none' for logits but received "some"`],
    [{ hiddenStates: 1 }, 'Expected a boolean for hiddenStates but received 1'],
    [{ attentionMask: [1, 1] }, 'Expected u8[1, 3] for attentionMask but received u8[1, 2]'],
    [{ attentionMask: [1, 2, 1] }, 'Expected an integer from 0 to 1 for attentionMask[1] but received 2'],
    [{ segments: [1, 1] }, 'Expected i32[1, 3] for segments but received i32[1, 2]'],
    [{ segments: [1, 1.5, 2] }, 'for segments[1] but received 1.5'],
    [{ segments: 'all' }, 'Expected an Int32Array or an array of integers for segments but received "all"'],
    [{ signal: {} }, 'Expected an AbortSignal for signal but received an object'],
    [{ gradient: true, logits: 'last' }, `Expected 'all' for logits but received "last"`],
    [[], 'Expected an object for options but received an array of 0'],
  ])('refuses options %j', async (options, message) => {
    await expect(model.forward([1, 2, 3], options as object)).rejects.toThrow(message)
  })
})

describe('initialize', () => {
  test('the same seed gives the same weights, another seed others', async () => {
    const weights = async (seed: number) => {
      const model = await tinyModel({ seed })
      const values = await model.parameter('model.layers.1.mlp.down_proj.weight')!.read()
      await model.dispose()
      return values
    }
    expect(await weights(1)).toEqual(await weights(1))
    expect(await weights(1)).not.toEqual(await weights(2))
  })

  test.each([
    [{ seed: -1 }, 'Expected an integer or bigint from 0 to 2^64 - 1 for seed but received -1'],
    [{ stddev: 0 }, 'Expected a finite number above 0 for stddev but received 0'],
    [{ weights: 'int4' }, 'for weights but received "int4"'],
    [{ threads: 0 }, 'Expected an integer from 1 to 1024 for threads but received 0'],
    [{ device: 'gpu' }, `Expected 'cpu' or 'cuda:N' for device but received "gpu"`],
  ])('refuses %j', async (options, message) => {
    await expect(tinyModel(options as object)).rejects.toThrow(message)
  })

  test('a CUDA device that cannot be had is an error with its reason, never the CPU', async () => {
    await expect(tinyModel({ device: 'cuda:0' })).rejects.toMatchObject({
      name: 'Qwen3Nvfp4Error',
      code: expect.stringMatching(/^(CUDA_UNAVAILABLE|UNSUPPORTED)$/),
    })
  })

  test('refuses a configuration that contradicts itself', async () => {
    await expect(tinyModel({}, { ...tinyConfig, numKeyValueHeads: 3 })).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
    })
  })
})

describe('parameters', () => {
  test('are those of the checkpoint, and a written value is read again', async () => {
    const model = await tinyModel({ weights: 'fp32' })
    const names = [...model.parameters()].map(({ name }) => name)
    expect(names).toHaveLength(2 + 2 * 11)
    expect(names[0]).toBe('model.embed_tokens.weight')
    expect([...model.parameters()].reduce((sum, { count }) => sum + count, 0)).toBe(model.parameterCount)
    const norm = model.parameter('model.norm.weight')!
    const values = Float32Array.from({ length: 32 }, (_, i) => 1 + i / 64)
    await norm.write(values)
    expect(await norm.read()).toEqual(values)
    await expect(norm.write(new Float32Array(3))).rejects.toThrow('Expected f32[32] for values but received f32[3]')
    await expect(norm.write(values.map(() => NaN))).rejects.toMatchObject({ code: 'NON_FINITE_WEIGHT' })
    expect(model.parameter('nothing')).toBeUndefined()
    await model.dispose()
  })
})
