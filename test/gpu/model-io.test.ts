/**
 * Needs a CUDA device: `npm run test:gpu`. A model in GPU memory is filled, read, written and saved as one on the CPU:
 * the same bytes in every file and in every value.
 */
import { createHash } from 'node:crypto'
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  dequantizeNvfp4,
  type InitializeOptions,
  type LoadOptions,
  type OptimizerOptions,
  quantizeNvfp4,
  type Qwen3Config,
  Qwen3Nvfp4Model,
  toConfigJson,
  writeSafetensors,
} from 'qwen3-nvfp4'
import { toBf16 } from '../support/bf16'
import { packedTensors, type PackedOptions, writeModel } from '../support/checkpoints'
import { temporaryFolder } from '../support/files'
import { writeGguf } from '../support/gguf'
import { ggufModel } from '../support/gguf-model'
import { ops } from '../support/native-ops'
import { gaussian } from '../support/random'
import { idsOf, tinyConfig } from '../support/tiny-model'

const device = 'cuda:0'
const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

/** Rows that are no whole blocks, so that most matrices are dense. */
const odd: Qwen3Config = { ...tinyConfig, hiddenSize: 40, vocabSize: 7, tieWordEmbeddings: false }
/** An embedding that no piece on the way to the GPU holds, in any storage. */
const large: Qwen3Config = { ...tinyConfig, hiddenSize: 512, vocabSize: 72_000, intermediateSize: 1536 }
const matrix = 'model.layers.1.mlp.down_proj.weight'

/** What stands for bytes in a comparison, as a difference of large arrays takes minutes to print. */
function digest(...arrays: (Uint8Array | Float32Array)[]): string {
  const hash = createHash('sha256')
  for (const { buffer, byteOffset, byteLength } of arrays) hash.update(new Uint8Array(buffer, byteOffset, byteLength))
  return hash.digest('hex')
}

type Where = { device?: string }
const both: [Where, Where] = [{}, { device }]

async function saved(model: Qwen3Nvfp4Model): Promise<Buffer> {
  const path = join(temporaryFolder(), 'model.dat')
  await model.saveDat(path)
  return readFileSync(path)
}

/** What `of` makes of a model on the CPU and of one on the GPU, which are disposed. */
async function onBoth<T>(
  make: (where: Where) => Promise<Qwen3Nvfp4Model>,
  of: (model: Qwen3Nvfp4Model) => Promise<T>,
): Promise<[T, T]> {
  const results: T[] = []
  for (const where of both) {
    await using model = await make(where)
    expect(model.device).toBe(where.device ?? 'cpu')
    results.push(await of(model))
  }
  return results as [T, T]
}

async function expectSameDat(make: (where: Where) => Promise<Qwen3Nvfp4Model>): Promise<void> {
  const [cpu, gpu] = await onBoth(make, saved)
  expect(Buffer.compare(gpu, cpu)).toBe(0)
}

const initialized = (options: InitializeOptions, config: Qwen3Config) => (where: Where) =>
  Qwen3Nvfp4Model.initialize(config, { seed: 11n, stddev: 0.15, ...options, ...where })

const loaded = (path: string, options: LoadOptions) => (where: Where) =>
  Qwen3Nvfp4Model.load(path, { ...options, ...where })

async function datOf(options: InitializeOptions, config: Qwen3Config): Promise<string> {
  await using model = await initialized(options, config)({})
  const path = join(temporaryFolder(), 'model.dat')
  await model.saveDat(path)
  return path
}

withCuda(`a model in GPU memory${probe.reason && ` (${probe.reason})`}`, () => {
  describe('initialize gives the bytes of the CPU', () => {
    const cases: [string, InitializeOptions, Qwen3Config][] = [
      ['nvfp4', {}, tinyConfig],
      ['nvfp4 of one level', { scales: 'one-level' }, tinyConfig],
      ['nvfp4 from draws far out', { seed: 2n ** 63n + 5n, stddev: 3 }, tinyConfig],
      ['nvfp4 where rows are no whole blocks', {}, odd],
      ['bf16', { weights: 'bf16' }, odd],
      ['fp16', { weights: 'fp16' }, odd],
      ['fp32', { weights: 'fp32' }, odd],
      ['nvfp4 of 37 million values', {}, large],
    ]
    test.each(cases)('in %s', async (_, options, config) => {
      await expectSameDat(initialized(options, config))
    })
  })

  describe('load gives the bytes of the CPU', () => {
    const files: [string, PackedOptions, LoadOptions][] = [
      ['of the prior layout', {}, {}],
      ['of fp16 scales', { scalesType: 5, rawType: 15 }, {}],
      ['of fp32 scales', { scalesType: 6, rawType: 6 }, {}],
      ['of two levels', { globalScale: 2 ** -9, packEmbedding: true }, {}],
      ['with the embedding quantised', { rawType: 6 }, { weights: 'nvfp4', embedding: 'nvfp4' }],
      ['decoded to fp32', { globalScale: 2 ** -9 }, { weights: 'fp32' }],
      ['decoded to bf16', {}, { weights: 'bf16' }],
    ]
    test.each(files)('from a .dat %s', async (_, packed, options) => {
      const path = await writeModel(temporaryFolder(), packedTensors(packed), packed.config)
      await expectSameDat(loaded(path, options))
    })

    test.each([
      ['nvfp4', {}, 72_000],
      ['fp32', {}, 20_000],
      ['bf16', {}, 20_000],
      ['fp32', { weights: 'bf16' }, 20_000],
      ['bf16', { weights: 'nvfp4', embedding: 'nvfp4' }, 72_000],
    ] as const)('from a .dat in %s, %j, in several pieces', async (weights, options, vocabSize) => {
      const path = await datOf({ weights }, { ...large, vocabSize })
      await expectSameDat(loaded(path, options))
    })

    test('from a .dat with residuals, as they are, folded and dropped', async () => {
      const path = join(temporaryFolder(), 'model.dat')
      {
        await using model = await initialized({}, tinyConfig)({})
        const optimizer = model.createOptimizer({ weights: 'nvfp4+residual', lr: 1e-2 })
        const ids = idsOf(24)
        for (let i = 0; i < 3; i++) await optimizer.trainStep({ ids, labels: ids })
        await model.saveDat(path)
        await optimizer.dispose()
      }
      await expectSameDat(loaded(path, {}))
      await expectSameDat(loaded(path, { weights: 'fp32' }))
      for (const residual of ['fold', 'drop'] as const) {
        const [cpu, gpu] = await onBoth(loaded(path, {}), async (model) => {
          const target = join(temporaryFolder(), 'model.dat')
          const { folded } = await model.saveDat(target, { residual })
          return { folded, bytes: readFileSync(target) }
        })
        expect(gpu.folded).toEqual(cpu.folded)
        expect(cpu.folded.length > 0).toBe(residual === 'fold')
        expect(Buffer.compare(gpu.bytes, cpu.bytes)).toBe(0)
      }
    })

    test.each(['float32', 'bfloat16'] as const)('from a Hugging Face directory in %s', async (dtype) => {
      const folder = temporaryFolder()
      {
        await using model = await initialized({ weights: dtype === 'float32' ? 'fp32' : 'bf16' }, tinyConfig)({})
        const tensors = new Map<string, { dtype: typeof dtype; shape: number[]; data: Float32Array | Uint16Array }>()
        for (const each of model.parameters()) {
          const values = await each.read()
          const data = dtype === 'float32' ? values : toBf16(values)
          tensors.set(each.name, { dtype, shape: [...each.shape], data })
        }
        await writeSafetensors(join(folder, 'model.safetensors'), tensors)
        writeFileSync(join(folder, 'config.json'), JSON.stringify(toConfigJson(tinyConfig)))
      }
      await expectSameDat(loaded(folder, {}))
      await expectSameDat(loaded(folder, { scales: 'one-level', scaleRule: 'four-over-six' }))
      await expectSameDat(loaded(folder, { weights: 'bf16' }))
    })

    test.each([
      ['nvfp4', undefined],
      ['nvfp4', 'bf16'],
      ['q8_0', undefined],
      ['q8_0', 'fp32'],
    ] as const)('from a GGUF in %s as %s', async (kind, weights) => {
      const model = ggufModel(kind, { embedding: 'bf16', scale: true })
      const path = writeGguf(join(temporaryFolder(), 'x.gguf'), model.parts)
      await expectSameDat(loaded(path, { weights }))
    })

    test('refuses a NaN by tensor, row and block, and frees what was loaded', async () => {
      const tensors = packedTensors({})
      ;(tensors.get('lm_head.weight.scale')!.data as Uint8Array)[11] = 0x7f
      const path = await writeModel(temporaryFolder(), tensors)
      await using witness = await initialized({}, tinyConfig)({ device })
      const { total } = await witness.memory()
      await expect(Qwen3Nvfp4Model.load(path, { device })).rejects.toMatchObject({
        code: 'NON_FINITE_WEIGHT',
        message: expect.stringContaining('lm_head.weight holds the scale nan at row 5, block 1'),
      })
      expect((await witness.memory()).total).toBe(total)
    })

    test('stops when it is told to, and frees what was loaded', async () => {
      const path = await datOf({ weights: 'fp32' }, large)
      await using witness = await initialized({}, tinyConfig)({ device })
      const { total } = await witness.memory()
      const controller = new AbortController()
      const onProgress = () => controller.abort(new Error('enough'))
      const loading = Qwen3Nvfp4Model.load(path, { device, signal: controller.signal, onProgress })
      await expect(loading).rejects.toThrow('enough')
      expect((await witness.memory()).total).toBe(total)
    })
  })

  describe('values', () => {
    test.each(['nvfp4', 'fp32', 'fp16', 'bf16'] as const)('of %s are read and overwritten alike', async (weights) => {
      const values = gaussian(32 * 64, 0.4)
      const [cpu, gpu] = await onBoth(initialized({ weights }, tinyConfig), async (model) => {
        const before = await model.parameter(matrix)!.read()
        await model.parameter(matrix)!.write(values)
        await model.parameter('model.norm.weight')!.write(gaussian(32, 1))
        const refused = values.slice()
        refused[70] = Infinity
        await expect(model.parameter(matrix)!.write(refused)).rejects.toThrow('row 1, column 6')
        return digest(before, await model.parameter(matrix)!.read(), await saved(model))
      })
      expect(gpu).toBe(cpu)
    })

    test('of a matrix longer than one piece are read and overwritten alike', async () => {
      const name = 'model.embed_tokens.weight'
      const some = gaussian(65_521, 0.1)
      const values = new Float32Array(large.vocabSize * large.hiddenSize).map((_, i) => some[i % some.length]!)
      const [cpu, gpu] = await onBoth(initialized({}, large), async (model) => {
        await model.parameter(name)!.write(values)
        return digest(await model.parameter(name)!.read())
      })
      expect(gpu).toBe(cpu)
    })

    test('that are overwritten lose their residual', async () => {
      const [cpu, gpu] = await onBoth(initialized({}, tinyConfig), async (model) => {
        await using optimizer = model.createOptimizer({ weights: 'nvfp4+residual' })
        await optimizer.stateBytes()
        await model.parameter(matrix)!.write(gaussian(32 * 64, 0.4))
        return digest(await model.parameter(matrix)!.read(), await saved(model))
      })
      expect(gpu).toEqual(cpu)
    })
  })

  describe('a saved cache', () => {
    const ids = idsOf(150)
    const cacheBytes = async (cache: { save(path: string): Promise<void> }) => {
      const path = join(temporaryFolder(), 'cache')
      await cache.save(path)
      return { path, bytes: readFileSync(path) }
    }

    const dtype = 'bf16'

    test('goes to the GPU and back', async () => {
      await using cpu = await initialized({}, tinyConfig)({})
      await using gpu = await initialized({}, tinyConfig)({ device })
      for (const tokens of [5, 64, 130]) {
        await using cache = cpu.createKvCache({ maxTokens: 200, dtype })
        await cpu.forwardWithKvCache(ids.slice(0, tokens), cache, { logits: 'none' })
        const first = await cacheBytes(cache)
        await using there = gpu.createKvCache({ maxTokens: 200, dtype })
        await there.restore(first.path)
        expect(there.seqLen).toBe(tokens)
        const second = await cacheBytes(there)
        expect(Buffer.compare(second.bytes, first.bytes)).toBe(0)

        await using back = cpu.createKvCache({ maxTokens: 200, dtype })
        await back.restore(second.path)
        const logits = [cache, back].map(async (each) => {
          const result = await cpu.forwardWithKvCache([7, 8], each)
          return result.logits.toFloat32Array()
        })
        expect(await logits[1]).toEqual(await logits[0])

        await there.truncate(3)
        await cache.truncate(3)
        expect(digest((await cacheBytes(there)).bytes)).toBe(digest((await cacheBytes(cache)).bytes))
      }
    })

    test('holds what attention on the GPU uses by default, and a short file leaves it as it was', async () => {
      await using cpu = await initialized({}, tinyConfig)({})
      await using gpu = await initialized({}, tinyConfig)({ device })
      await using cache = cpu.createKvCache({ maxTokens: 200, dtype })
      await cpu.forwardWithKvCache(ids, cache, { logits: 'none' })
      const { path, bytes } = await cacheBytes(cache)
      await using there = gpu.createKvCache({ maxTokens: 200 })
      expect(there.dtype).toBe(dtype)
      await there.restore(path)
      truncateSync(path, bytes.length - 1)
      await expect(there.restore(path)).rejects.toMatchObject({ code: 'FILE_TRUNCATED' })
      expect(Buffer.compare((await cacheBytes(there)).bytes, bytes)).toBe(0)
    })
  })

  describe('an optimizer state', () => {
    const modes: OptimizerOptions[] = [
      { weights: 'nvfp4', moments: 'nvfp4' },
      { weights: 'nvfp4+residual', moments: 'int8' },
      { weights: 'bf16', moments: 'bf16' },
      { weights: 'fp32', moments: 'fp32' },
    ]
    const stateOf = async (optimizer: { save(path: string): Promise<void> }) => {
      const path = join(temporaryFolder(), 'state')
      await optimizer.save(path)
      return { path, bytes: readFileSync(path) }
    }

    test.each(modes)('that is new has the bytes of the CPU, %j', async (options) => {
      const [cpu, gpu] = await onBoth(initialized({}, tinyConfig), async (model) => {
        await using optimizer = model.createOptimizer(options)
        return (await stateOf(optimizer)).bytes
      })
      expect(Buffer.compare(gpu, cpu)).toBe(0)
    })

    test.each(modes)('goes to the GPU and back, %j', async (options) => {
      await using cpu = await initialized({}, tinyConfig)({})
      await using trained = cpu.createOptimizer({ ...options, lr: 1e-2 })
      const tokens = idsOf(24)
      for (let i = 0; i < 2; i++) await trained.trainStep({ ids: tokens, labels: tokens })
      const first = await stateOf(trained)

      const dat = join(temporaryFolder(), 'model.dat')
      await cpu.saveDat(dat)
      await using gpu = await loaded(dat, {})({ device })
      await using there = gpu.createOptimizer({ ...options, lr: 1e-2 })
      expect(await there.load(first.path)).toBe(2)
      const second = await stateOf(there)
      expect(Buffer.compare(second.bytes, first.bytes)).toBe(0)

      await using again = await loaded(dat, {})({})
      await using back = again.createOptimizer({ ...options, lr: 1e-2 })
      expect(await back.load(second.path)).toBe(2)
      const step = { ids: tokens, labels: tokens }
      expect((await back.trainStep(step)).loss).toBe((await trained.trainStep(step)).loss)
      expect(Buffer.compare(await saved(again), await saved(cpu))).toBe(0)
    })

    test('larger than one piece is saved and loaded whole', async () => {
      await using cpu = await initialized({}, large)({})
      await using gpu = await initialized({}, large)({ device })
      const options = { moments: 'int8', trainable: (name: string) => name === 'model.embed_tokens.weight' } as const
      await using trained = cpu.createOptimizer(options)
      const tokens = idsOf(24)
      await trained.trainStep({ ids: tokens, labels: tokens })
      const first = await stateOf(trained)
      await using there = gpu.createOptimizer(options)
      await there.load(first.path)
      expect(Buffer.compare((await stateOf(there)).bytes, first.bytes)).toBe(0)
    })
  })

  describe('memory', () => {
    test('is counted by kind as on the CPU, and says what the GPU has', async () => {
      const [cpu, gpu] = await onBoth(initialized({}, tinyConfig), async (model) => (await model.memory()).model)
      expect(gpu).toEqual(cpu)
      await using model = await initialized({}, tinyConfig)({ device })
      const { gpuFree, gpuTotal, total } = await model.memory()
      expect(total).toBeGreaterThan(0)
      expect(gpuFree).toBeGreaterThan(0)
      expect(gpuTotal).toBeGreaterThan(gpuFree!)
      await using host = await initialized({}, tinyConfig)({})
      expect((await host.memory()).gpuTotal).toBeUndefined()
    })

    test('that is not there is an error with bytes, and everything is free again', async () => {
      const giant: Qwen3Config = {
        ...tinyConfig,
        hiddenSize: 16_384,
        numHiddenLayers: 400,
        numAttentionHeads: 128,
        numKeyValueHeads: 128,
        headDim: 128,
        intermediateSize: 65_536,
      }
      await using witness = await initialized({}, tinyConfig)({ device })
      const before = await witness.memory()
      for (let i = 0; i < 2; i++) {
        const failed = await Qwen3Nvfp4Model.initialize(giant, { device }).catch((error: unknown) => error)
        expect(failed).toMatchObject({ code: 'OUT_OF_MEMORY' })
        expect((failed as Error).message).toMatch(/\d+ bytes of \w+ were asked, .*\d+ of \d+ bytes of the GPU are free/)
      }
      const after = await witness.memory()
      expect(after.total).toBe(before.total)
      expect(Math.abs(after.gpuFree! - before.gpuFree!)).toBeLessThan(64 << 20)
      await expectSameDat(initialized({}, tinyConfig))
    })

    test('is flat over 50 models that are loaded and disposed', async () => {
      const path = await datOf({}, { ...large, vocabSize: 20_000 })
      await using witness = await initialized({}, tinyConfig)({ device })
      const life = async () => (await Qwen3Nvfp4Model.load(path, { device })).dispose()
      await life()
      const before = await witness.memory()
      for (let i = 0; i < 50; i++) await life()
      const after = await witness.memory()
      expect(after.total).toBe(before.total)
      expect(Math.abs(after.gpuFree! - before.gpuFree!)).toBeLessThan(64 << 20)
    })
  })

  describe('the codec', () => {
    const [rows, cols] = [97, 1040]
    const values = gaussian(rows * cols, 0.02)

    test.each([{}, { rounding: 'stochastic', seed: 3 }, { scaleRule: 'four-over-six' }] as const)(
      'gives the bytes of the CPU, %j',
      async (options) => {
        const cpu = await quantizeNvfp4(values, { rows, cols, ...options })
        const gpu = await quantizeNvfp4(values, { rows, cols, ...options, device })
        expect(gpu.globalScale).toBe(cpu.globalScale)
        expect(digest(gpu.codes, gpu.scales)).toBe(digest(cpu.codes, cpu.scales))
        expect(digest(await dequantizeNvfp4(cpu, { device }))).toBe(digest(await dequantizeNvfp4(cpu)))
      },
    )

    test('names the value that it refuses as the CPU does', async () => {
      const bad = values.slice()
      bad[70 * cols + 21] = NaN
      const messages = both.map((where) =>
        quantizeNvfp4(bad, { rows, cols, scales: 'one-level', ...where }).catch((error: Error) => error.message),
      )
      expect(await messages[1]).toBe(await messages[0])
      expect(await messages[0]).toContain('row 70, column 21')
    })
  })
})
