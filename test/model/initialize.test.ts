import { createHash } from 'node:crypto'
import { Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import type { InitializeOptions, Qwen3Config } from 'qwen3-nvfp4'

// H = 40 is no multiple of 16, so most matrices of `odd` must be dense.
const tiny: Qwen3Config = {
  hiddenSize: 64,
  numHiddenLayers: 2,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 16,
  intermediateSize: 96,
  vocabSize: 513,
  ropeTheta: 1e6,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: false,
}
const odd: Qwen3Config = { ...tiny, hiddenSize: 40, vocabSize: 7, numHiddenLayers: 1 }

async function valuesOf(config: Qwen3Config, options: InitializeOptions) {
  const model = await Qwen3Nvfp4Model.initialize(config, options)
  const tensors = new Map<string, { storage: string; shape: readonly number[]; values: Float32Array }>()
  for (const parameter of model.parameters()) {
    const { name, storage, shape } = parameter
    tensors.set(name, { storage, shape, values: await parameter.read() })
  }
  await model.dispose()
  return tensors
}

function digest(tensors: Awaited<ReturnType<typeof valuesOf>>): string {
  const hash = createHash('sha256')
  for (const [name, { values }] of tensors) hash.update(name).update(new Uint8Array(values.buffer))
  return hash.digest('hex').slice(0, 16)
}

describe('initialize', () => {
  it('gives the same values on every machine, whatever the number of threads', async () => {
    // Written down once: a machine that prints another digest computes other weights from the same seed.
    const expected = { fp32: 'db73fcdf86004f76', bf16: 'a33876ce8b0d1311', nvfp4: '68c7e219cbc5eae6' }
    for (const weights of ['fp32', 'bf16', 'nvfp4'] as const) {
      for (const threads of [1, 3]) {
        expect(digest(await valuesOf(tiny, { seed: 5n, weights, threads }))).toBe(expected[weights])
      }
    }
    expect(digest(await valuesOf(tiny, { seed: 6n, weights: 'fp32' }))).not.toBe(expected.fp32)
  })

  it('draws Normal(0, stddev) for matrices, another one for each, and ones for norms', async () => {
    const tensors = await valuesOf(tiny, { seed: 1, stddev: 0.5, weights: 'fp32' })
    const embedding = tensors.get('model.embed_tokens.weight')!.values
    const head = tensors.get('lm_head.weight')!.values
    const count = embedding.length
    const moment = (power: number) => embedding.reduce((sum, value) => sum + (value / 0.5) ** power, 0) / count
    // Four standard errors of each moment of `count` normal draws.
    expect(Math.abs(moment(1))).toBeLessThan(4 / Math.sqrt(count))
    expect(Math.abs(moment(2) - 1)).toBeLessThan(4 * Math.sqrt(2 / count))
    expect(Math.abs(moment(4) - 3)).toBeLessThan(4 * Math.sqrt(96 / count))
    const product = embedding.reduce((sum, value, i) => sum + value * head[i]!, 0) / 0.25 / count
    expect(Math.abs(product)).toBeLessThan(4 / Math.sqrt(count))
    expect(tensors.get('model.norm.weight')!.values.every((value) => value === 1)).toBe(true)
  })

  it('quantises the very same draws, near nothing of which one level keeps when they are small', async () => {
    const noiseOf = async (options: InitializeOptions) => {
      const name = 'model.layers.1.mlp.down_proj.weight'
      const draws = (await valuesOf(tiny, { ...options, weights: 'fp32' })).get(name)!.values
      const { values, storage } = (await valuesOf(tiny, options)).get(name)!
      expect(storage).toBe('nvfp4')
      const noise = draws.reduce((sum, value, i) => sum + (value - values[i]!) ** 2, 0)
      return noise / draws.reduce((sum, value) => sum + value ** 2, 0)
    }
    // 20.4 dB, less the sampling error of 6144 values
    expect(await noiseOf({ seed: 3, stddev: 1e-3 })).toBeLessThan(10 ** -2.02)
    expect(await noiseOf({ seed: 3, stddev: 1e-3, scales: 'one-level' })).toBeGreaterThan(0.5)
  })

  it('keeps matrices whose rows are no whole blocks dense', async () => {
    const tensors = await valuesOf(odd, { seed: 1 })
    expect(tensors.get('model.layers.0.self_attn.q_proj.weight')).toMatchObject({ storage: 'fp32', shape: [64, 40] })
    expect(tensors.get('model.layers.0.mlp.down_proj.weight')).toMatchObject({ storage: 'nvfp4', shape: [40, 96] })
  })

  it('refuses a standard deviation of zero', async () => {
    await expect(Qwen3Nvfp4Model.initialize(tiny, { stddev: 0 })).rejects.toThrow(RangeError)
  })
})
