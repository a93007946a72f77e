/** Runs that stop, die or find a full disk, and go on: the same losses and files as of a run that never stopped. */
import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import {
  findCheckpoint,
  Qwen3Nvfp4Model,
  type SavedCheckpoint,
  type StepEvent,
  Trainer,
  type TrainerEvent,
  type TrainerOptions,
  TrainingData,
} from 'qwen3-nvfp4'
import { batchSource } from '../support/batch-source'
import { listFolder, temporaryFolder } from '../support/files'
import { idsOf, tinyConfig, tinyModel } from '../support/tiny-model'

type Options = Partial<TrainerOptions>

const samples = Array.from({ length: 7 }, (_, i) => ({ ids: idsOf(5 + i, 3 * i), labels: idsOf(5 + i, 3 * i) }))
const basics = { maxTokens: 16, batchSize: 2, steps: 8, lr: 5e-3, warmupSteps: 2, pack: true, seed: 5 } as const

async function run(model: Qwen3Nvfp4Model, options: Options): Promise<TrainerEvent[]> {
  const data = await TrainingData.fromSamples(samples)
  await using trainer = new Trainer({ model, data, ...basics, ...options })
  const events: TrainerEvent[] = []
  for await (const event of trainer) events.push(event)
  return events
}

const lossesOf = (events: TrainerEvent[]) =>
  events
    .filter((event): event is StepEvent => event.type === 'step')
    .map(({ step, loss, gradNorm }) => [step, loss, gradNorm])

const last = async (folder: string): Promise<SavedCheckpoint> => (await findCheckpoint(folder)).checkpoint!

/** What a checkpoint is made of, but for where it lies. */
const contentOf = ({ path, step, state, files }: SavedCheckpoint) => ({
  ...{ step, state },
  files: files.map(({ name }) => [name, readFileSync(join(path, name))]),
})

const validation = batchSource({ samples: 2, tokens: 10 })

describe('a resumed run equals one that never stopped, in losses and in the bytes of its last checkpoint', () => {
  const modes: [string, Options, Parameters<typeof tinyModel>[0]?][] = [
    ['everything in NVFP4', { weightDecay: 0.1 }],
    ['a residual', { optimizer: { weights: 'nvfp4+residual' } }],
    [
      'a residual that the forward pass does not see',
      { optimizer: { weights: 'nvfp4+residual', residualInForward: false } },
    ],
    ['a residual over one-level scales', { optimizer: { weights: 'nvfp4+residual' } }, { scales: 'one-level' }],
    ['fp32 masters', { optimizer: { weights: 'fp32', moments: 'int8' } }],
    ['bf16 masters', { optimizer: { weights: 'bf16', moments: 'bf16' } }],
    ['dense fp32 weights', { optimizer: { moments: 'fp32' } }, { weights: 'fp32' }],
    ['dense bf16 weights', {}, { weights: 'bf16' }],
    ['dense fp16 weights', {}, { weights: 'fp16' }],
    ['accumulation', { accumulate: 2, optimizer: { gradients: 'nvfp4' } }],
    ['a part that trains', { trainable: { lastLayers: 1 }, schedule: 'wsd', decaySteps: 3 }],
    ['epochs and validation', { steps: undefined, epochs: 3, validation, evalEvery: 2, earlyStop: { patience: 50 } }],
  ]

  test.each(modes)('with %s', async (_, options, form = {}) => {
    const [whole, parts] = [temporaryFolder(), temporaryFolder()]
    await using model = await tinyModel(form)
    const expected = lossesOf(await run(model, { ...options, checkpointDir: whole }))

    // Stopped after step 3, and again after step 5; each time a model that knows nothing goes on.
    const losses: unknown[] = []
    for (const stopAfter of [3, 5, Infinity]) {
      await using other = await tinyModel({ ...form, seed: stopAfter === 3 ? 7 : 99, threads: 1 })
      const stopping = new AbortController()
      const data = await TrainingData.fromSamples(samples)
      await using trainer = new Trainer({
        ...{ model: other, data, ...basics, ...options },
        ...{ checkpointDir: parts, resume: true, signal: stopping.signal },
      })
      trainer.on('step', ({ step, loss, gradNorm }) => {
        losses.push([step, loss, gradNorm])
        if (step === stopAfter) stopping.abort()
      })
      await trainer.run()
    }
    expect(losses).toEqual(expected)
    expect(contentOf(await last(parts))).toEqual(contentOf(await last(whole)))
    expect(listFolder(parts)).toHaveLength(3)
  })

  test('and its model.dat is served as it is', async () => {
    const folder = temporaryFolder()
    await using model = await tinyModel()
    await run(model, { checkpointDir: folder, optimizer: { weights: 'nvfp4+residual' } })
    await using served = await Qwen3Nvfp4Model.load(join((await last(folder)).path, 'model.dat'))
    for (const parameter of model.parameters()) {
      expect(await served.parameter(parameter.name)!.read()).toEqual(await parameter.read())
    }
  })

  test('in the same optimizer too', async () => {
    const folder = temporaryFolder()
    await using model = await tinyModel()
    await using optimizer = model.createOptimizer({ weights: 'nvfp4+residual', lr: 1 })
    const first = lossesOf(await run(model, { optimizer, checkpointDir: folder, checkpointEvery: 4 }))
    rmSync(join(folder, 'step-00000008'), { recursive: true })
    expect(lossesOf(await run(model, { optimizer, checkpointDir: folder, resume: true }))).toEqual(first.slice(4))
  })
})

describe('a folder of checkpoints', () => {
  let model: Qwen3Nvfp4Model
  const folder = temporaryFolder()
  beforeAll(async () => {
    model = await tinyModel()
    await run(model, { checkpointDir: folder, checkpointEvery: 2, keep: 2 })
  })
  afterAll(() => model.dispose())

  test('keeps the last ones, and nothing else', async () => {
    expect(listFolder(folder)).toEqual(['step-00000006', 'step-00000008'])
    const { path, files, library } = await last(folder)
    expect(listFolder(path)).toEqual(['config.json', 'model.dat', 'optimizer.state', 'trainer.json'])
    expect(files.map(({ name }) => name)).toEqual(['config.json', 'model.dat', 'optimizer.state'])
    expect(library).toMatch(/^\d+\.\d+\.\d+/)
  })

  test('reports bytes and pause', async () => {
    const events = await run(model, { checkpointDir: temporaryFolder() })
    const saved = events.find(({ type }) => type === 'checkpoint')!
    expect(saved).toMatchObject({ step: 8, bytes: expect.any(Number), seconds: expect.any(Number) })
  })

  test('is not begun anew by accident', async () => {
    await expect(run(model, { checkpointDir: folder })).rejects.toMatchObject({
      code: 'CHECKPOINT_DIR_NOT_EMPTY',
      message: expect.stringContaining('holds the checkpoint of step 8: ask for resume: true'),
    })
  })

  test('does not go back behind its later checkpoints', async () => {
    const resume = join(folder, 'step-00000006')
    await expect(run(model, { checkpointDir: folder, resume })).rejects.toThrow('holds the later checkpoint of step 8')
    const events = await run(model, { checkpointDir: temporaryFolder(), resume })
    expect(lossesOf(events).map(([step]) => step)).toEqual([7, 8])
  })

  test.each<[string, Options, string]>([
    ['another rate', { lr: 1e-3 }, 'lr was 0.005 and is 0.001'],
    ['other steps', { steps: 9 }, 'steps was 8 and is 9'],
    ['other weights', { optimizer: { weights: 'fp32' } }, 'weights was "nvfp4" and is "fp32"'],
    ['fewer parameters', { trainable: { lastLayers: 1 } }, 'trainable was "'],
    ['other data', { data: batchSource({ fingerprint: 'b' }), pack: false }, 'data was "'],
  ])('refuses %s, saying what differs', async (_, options, difference) => {
    await expect(run(model, { ...options, checkpointDir: folder, resume: true })).rejects.toMatchObject({
      code: 'RESUME_MISMATCH',
      message: expect.stringContaining(difference),
    })
  })

  test('takes a difference that is named', async () => {
    const copy = temporaryFolder()
    cpSync(folder, copy, { recursive: true })
    const events = await run(model, { checkpointDir: copy, resume: true, steps: 9, allowChanged: ['steps'] })
    expect(lossesOf(events).map(([step]) => step)).toEqual([9])
  })

  test('refuses a model of another shape', async () => {
    await using other = await tinyModel({}, { ...tinyConfig, intermediateSize: 96 })
    await expect(run(other, { checkpointDir: folder, resume: true })).rejects.toThrow(
      'model.intermediate_size was 64 and is 96',
    )
  })

  test('refuses another format by its version', async () => {
    const copy = temporaryFolder()
    cpSync(folder, copy, { recursive: true })
    const manifest = join(copy, 'step-00000008', 'trainer.json')
    writeFileSync(manifest, readFileSync(manifest, 'utf8').replace('"version":1', '"version":7'))
    await expect(run(model, { checkpointDir: copy, resume: true })).rejects.toMatchObject({
      code: 'RESUME_MISMATCH',
      message: expect.stringMatching(/was written by version .* in format 7 .*; this version reads format 1/),
    })
  })

  test.each<[string, (path: string) => void]>([
    ['a file is cut short', (path) => truncateSync(join(path, 'optimizer.state'), 100)],
    ['a file is missing', (path) => rmSync(join(path, 'model.dat'))],
    ['its manifest is missing', (path) => rmSync(join(path, 'trainer.json'))],
    ['its manifest is cut short', (path) => truncateSync(join(path, 'trainer.json'), 100)],
  ])('warns and takes the checkpoint before one of which %s', async (_, damage) => {
    const copy = temporaryFolder()
    cpSync(folder, copy, { recursive: true })
    damage(join(copy, 'step-00000008'))
    const events = await run(model, { checkpointDir: copy, resume: true })
    expect(events[0]).toMatchObject({ type: 'warning', code: 'damaged-checkpoint' })
    expect(lossesOf(events).map(([step]) => step)).toEqual([7, 8])
    expect((await last(copy)).step).toBe(8)
  })

  test('begins where there is nothing yet, and misses what was named', async () => {
    expect(lossesOf(await run(model, { checkpointDir: temporaryFolder(), resume: true }))).toHaveLength(8)
    await expect(run(model, { resume: temporaryFolder() })).rejects.toMatchObject({ code: 'RESUME_NOT_FOUND' })
  })

  test('is written by one live process', async () => {
    const own = temporaryFolder()
    const [data, checkpointDir] = [batchSource(), own]
    const trainer = new Trainer({ model, data, ...basics, pack: false, checkpointDir })
    for await (const event of trainer) {
      if (event.type !== 'step') continue
      await expect(run(model, { checkpointDir })).rejects.toMatchObject({
        code: 'CHECKPOINT_DIR_BUSY',
        message: expect.stringContaining(`belongs to process ${process.pid} on`),
      })
      break
    }
    expect(listFolder(own)).toEqual([])
    await trainer.dispose()

    const dead = spawnSync(process.execPath, ['-e', '']).pid
    const lock = { pid: dead, host: hostname(), begin: '', nonce: 'a' }
    writeFileSync(join(own, 'lock.json'), JSON.stringify(lock))
    mkdirSync(join(own, '.tmp-left'))
    await run(model, { checkpointDir: own })
    expect(listFolder(own)).toEqual(['step-00000008'])

    writeFileSync(join(own, 'lock.json'), JSON.stringify({ ...lock, host: 'elsewhere' }))
    await expect(run(model, { checkpointDir: own, resume: true })).rejects.toThrow(
      'delete the file if that process is gone, which cannot be seen from here',
    )
  })
})
