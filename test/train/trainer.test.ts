import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  learningRate,
  type PackedAdamW,
  planSchedule,
  type PreparedBatch,
  type Qwen3Nvfp4Model,
  type StepEvent,
  Trainer,
  type TrainerEvent,
  type TrainerOptions,
  TrainingData,
} from 'qwen3-nvfp4'
import { batchSource } from '../support/batch-source'
import { temporaryFolder } from '../support/files'
import { tinyConfig, tinyModel } from '../support/tiny-model'
import { byteTokenizer, writeData } from '../support/training-data'

const basics = { maxTokens: 12, lr: 5e-3, warmupSteps: 2, optimizer: { seed: 3 } } as const

/** Every event of a run. */
async function eventsOf(trainer: Trainer): Promise<TrainerEvent[]> {
  const events: TrainerEvent[] = []
  for await (const event of trainer) events.push(event)
  return events
}

const stepsOf = (events: TrainerEvent[]) => events.filter((event): event is StepEvent => event.type === 'step')

/** Losses of a new tiny model. */
async function train(options: Partial<TrainerOptions>): Promise<TrainerEvent[]> {
  await using model = await tinyModel()
  await using trainer = new Trainer({ model, data: batchSource(), ...basics, ...options })
  return await eventsOf(trainer)
}

async function batchesOf(options: Parameters<ReturnType<typeof batchSource>['batches']>[0]): Promise<PreparedBatch[]> {
  const batches = []
  for await (const batch of batchSource().batches(options)) batches.push(batch)
  return batches
}

describe('a run', () => {
  let model: Qwen3Nvfp4Model
  let optimizer: PackedAdamW
  beforeEach(async () => {
    model = await tinyModel()
    optimizer = model.createOptimizer({ seed: 3, decayNorms: false })
  })
  afterEach(async () => {
    await optimizer.dispose()
    await model.dispose()
  })

  test('makes the next batch while a step computes, and none that no step takes', async () => {
    const data = batchSource()
    let made = 0
    async function* counted(options: Parameters<typeof data.batches>[0]) {
      for await (const prepared of data.batches(options)) {
        made++
        yield prepared
      }
    }
    const { fingerprint, sampleCount } = data
    const source = { fingerprint, sampleCount, batches: counted, countBatches: data.countBatches.bind(data) }
    await using trainer = new Trainer({ model, data: source, ...basics, steps: 3 })
    const madeAtStep: number[] = []
    trainer.on('step', () => madeAtStep.push(made))
    await trainer.run()
    expect(madeAtStep).toEqual([2, 3, 3])
  })

  test('is the loop that one would write: fused steps, scheduled rates, clipping', async () => {
    const plan = planSchedule({ lr: 5e-3, warmupSteps: 2 }, 8)
    const losses: number[] = []
    const batches = await batchesOf({ maxTokens: 12, batchSize: 2, epochs: 3 })
    for (const [i, { batch }] of batches.slice(0, 8).entries()) {
      const { loss } = await optimizer.trainStep(batch, { lr: learningRate(plan, i + 1), maxGradNorm: 1 })
      losses.push(loss)
    }
    const events = stepsOf(await train({ steps: 8, batchSize: 2 }))
    expect(events.map(({ loss }) => loss)).toEqual(losses)
    expect(events.map(({ lr }) => lr)).toEqual(losses.map((_, i) => learningRate(plan, i + 1)))
    expect(events.map(({ epoch }) => epoch)).toEqual(
      [2, 4, 6, 2, 4, 6, 2, 4].map((sample, i) => Math.floor((i + 1) / 3) + (sample % 6) / 6),
    )
    expect(events.every(({ updateRms, seconds, dataSeconds }) => updateRms > 0 && seconds > dataSeconds)).toBe(true)
  })

  test('accumulates batches so that every label weighs the same', async () => {
    const [a, b, c] = await batchesOf({ maxTokens: 12 })
    const whole = [a!, b!, c!].map(({ batch }) => batch)
    const rows = { ids: whole.map(({ ids }) => ids[0]!), labels: whole.map(({ labels }) => labels[0]!) }
    const loss = await model.loss(rows.ids, rows.labels)
    expect(loss.tokens).toBe(a!.tokens + b!.tokens + c!.tokens)
    await loss.backward()
    const { gradNorm } = await optimizer.step({ lr: 0 })
    const [event] = stepsOf(await train({ steps: 1, accumulate: 3, warmupSteps: 0 }))
    expect(event!.loss).toBeCloseTo(loss.value, 5)
    expect(event!.tokens).toBe(loss.tokens)
    expect(event!.gradNorm).toBeCloseTo(gradNorm, 4)
  })

  test('takes the epochs that it is told, the last step with what is left', async () => {
    const trainer = new Trainer({
      model,
      data: batchSource({ samples: 5 }),
      ...basics,
      epochs: 2,
      accumulate: 3,
      optimizer,
    })
    const events = await eventsOf(trainer)
    expect(stepsOf(events).map(({ cursor }) => cursor)).toEqual([
      { epoch: 0, sample: 3 },
      { epoch: 1, sample: 1 },
      { epoch: 1, sample: 4 },
      { epoch: 2, sample: 0 },
    ])
    expect(trainer.totalSteps).toBe(4)
    expect(events.at(-1)).toMatchObject({ type: 'done', reason: 'epochs', steps: 4 })
    expect(await trainer.run()).toMatchObject({ steps: 4, tokens: 0 })
  })

  test('trains only what is selected, and spares norms from decay', async () => {
    const before = new Map<string, Float32Array>()
    for (const parameter of model.parameters()) before.set(parameter.name, await parameter.read())
    await using trainer = new Trainer({
      ...{ model, data: batchSource(), ...basics, steps: 2, schedule: 'constant', weightDecay: 0.1 },
      trainable: { lastLayers: 1 },
    })
    await trainer.run()
    const changed = []
    for (const { name, read } of [...model.parameters()].map((p) => ({ name: p.name, read: () => p.read() }))) {
      if (Buffer.compare(Buffer.from(before.get(name)!.buffer), Buffer.from((await read()).buffer)) !== 0)
        changed.push(name)
    }
    expect(changed.every((name) => /^model\.(layers\.1|norm)\./.test(name))).toBe(true)
    expect(changed.length).toBeGreaterThan(5)
  })

  test('is told to listeners too, and logged', async () => {
    const logFile = join(temporaryFolder(), 'log.jsonl')
    const trainer = new Trainer({ model, data: batchSource(), ...basics, steps: 2, optimizer, logFile })
    const heard: string[] = []
    trainer.on('step', ({ step, loss }) => heard.push(`${step} ${loss > 0}`))
    const done = once(trainer, 'done')
    const result = await trainer.run()
    expect(heard).toEqual(['1 true', '2 true'])
    expect((await done)[0]).toEqual({ type: 'done', step: 2, ...result })
    await trainer.run()
    const lines = readFileSync(logFile, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    expect(lines.map(({ type }) => type)).toEqual(['start', 'step', 'step', 'done', 'start', 'done'])
    expect(lines[1]).toMatchObject({ step: 1, updateRms: expect.any(Number), cursor: { epoch: 0, sample: 1 } })
  })

  test('stops after the step that a signal meets, and goes on when run again', async () => {
    const all = stepsOf(await train({ steps: 6 }))
    const stopping = new AbortController()
    const trainer = new Trainer({ model, data: batchSource(), ...basics, steps: 6, optimizer, signal: stopping.signal })
    trainer.once('step', () => stopping.abort())
    expect(await trainer.run()).toMatchObject({ reason: 'aborted', steps: 1 })
    const rest = new Trainer({ model, data: batchSource(), ...basics, steps: 6, optimizer })
    const losses: number[] = []
    rest.on('step', ({ loss, step }) => {
      losses.push(loss)
      if (step === 2) rest.stop()
    })
    await rest.run()
    expect((await rest.run()).steps).toBe(6)
    expect(losses).toHaveLength(6)
    expect(losses[0]).not.toBe(all[0]!.loss)
  })

  test('ends while it waits for data that does not come', async () => {
    const stopping = new AbortController()
    const data = batchSource({ onSample: (sample) => (sample === 2 ? new Promise(() => {}) : undefined) })
    const trainer = new Trainer({ model, data, ...basics, steps: 6, optimizer, signal: stopping.signal })
    setTimeout(() => stopping.abort(), 300)
    expect(await trainer.run()).toMatchObject({ reason: 'aborted', steps: 2 })
  })

  test('is one at a time, and leaving its loop ends it', async () => {
    const trainer = new Trainer({ model, data: batchSource(), ...basics, steps: 4, optimizer })
    for await (const event of trainer) {
      await expect(trainer.run()).rejects.toMatchObject({ code: 'BUSY' })
      if (event.step === 2) break
    }
    expect(await trainer.run()).toMatchObject({ steps: 4 })
  })

  test('warns once when the rates add up to more than NVFP4 weights carry', async () => {
    const warnings = (events: TrainerEvent[]) => events.filter(({ type }) => type === 'warning')
    const over = warnings(await train({ steps: 12, lr: 1e-2 }))
    expect(over).toMatchObject([
      { code: 'nvfp4-budget', message: expect.stringContaining("use weights 'nvfp4+residual'") },
    ])
    expect(warnings(await train({ steps: 4, lr: 1e-3 }))).toEqual([])
    expect(warnings(await train({ steps: 12, lr: 1e-2, optimizer: { weights: 'nvfp4+residual' } }))).toEqual([])
  })
})

describe('an outlier', () => {
  // In the third epoch a sample has labels that nothing has had before.
  const spoilt = () => {
    const data = batchSource({ samples: 12 })
    const batches: typeof data.batches = async function* (options) {
      for await (const prepared of data.batches(options)) {
        if (prepared.cursor.epoch === 2 && prepared.cursor.sample === 11)
          for (const row of prepared.batch.labels) row.fill(95)
        yield prepared
      }
    }
    return { ...data, batches }
  }

  test.each([
    ['loss', { skipLossFactor: 1.3 }],
    ['loss', { skipLossFactor: 1.2, accumulate: 2 }],
    ['norm', { skipNormFactor: 1.2 }],
  ] as const)('is left out for its %s with %j', async (reason, options) => {
    await using model = await tinyModel()
    const learnt = { lr: 2e-2, steps: 36, schedule: 'constant', optimizer: { weights: 'fp32' } } as const
    await using trainer = new Trainer({ model, data: spoilt(), ...basics, ...learnt, ...options })
    const events = await eventsOf(trainer)
    const skipped = stepsOf(events).filter((event) => event.skipped)
    expect(skipped.length).toBeGreaterThan(0)
    expect(skipped.every(({ skipped, updateRms }) => skipped === reason && updateRms === 0)).toBe(true)
    expect(events.at(-1)).toMatchObject({ skippedSteps: skipped.length })
  })
})

test('the loss hidden-l1 comes closer to the states of a teacher', async () => {
  await using teacher = await tinyModel({ seed: 8 })
  const losses = stepsOf(await train({ steps: 30, loss: 'hidden-l1', teacher })).map(({ loss }) => loss)
  expect(losses.at(-1)).toBeLessThan(losses[0]! * 0.8)
})

describe('validation', () => {
  const validation = batchSource({ samples: 3, fingerprint: 'other' })

  test('measures the mean over all labels, and tells the best', async () => {
    await using model = await tinyModel()
    let [sum, tokens] = [0, 0]
    for (const { batch } of await batchesOf({ maxTokens: 12 }).then((batches) => batches.slice(0, 3))) {
      await using loss = await model.loss(batch.ids, batch.labels)
      sum += loss.value * loss.tokens
      tokens += loss.tokens
    }
    const events = await train({ steps: 4, validation, evalEvery: 2, lr: 0, minLr: 0, warmupSteps: 0 })
    const evaluations = events.filter(({ type }) => type === 'eval')
    expect(evaluations).toMatchObject([
      { step: 2, loss: sum / tokens, tokens, isBest: true, best: sum / tokens },
      { step: 4, loss: sum / tokens, isBest: false },
    ])
    expect(events.at(-1)).toMatchObject({ best: { loss: sum / tokens, step: 2 } })
  })

  test('ends a run whose loss no longer falls', async () => {
    const options = { steps: 20, validation, evalEvery: 2, lr: 0, warmupSteps: 0, earlyStop: { patience: 2 } }
    expect((await train(options)).at(-1)).toMatchObject({ reason: 'early-stop', steps: 6 })
  })
})

describe('a loss that is not finite', () => {
  test('ends the run, naming data and tensor, and the run is not taken up again', async () => {
    await using model = await tinyModel({ weights: 'fp32' })
    const name = 'model.layers.0.mlp.up_proj.weight'
    const data = batchSource({
      onSample: async (sample) => {
        if (sample !== 4) return
        const parameter = model.parameter(name)!
        await parameter.write((await parameter.read()).fill(3e38))
      },
    })
    await using trainer = new Trainer({ model, data, ...basics, steps: 6 })
    const failure = await trainer.run().catch((error: unknown) => error)
    expect(failure).toMatchObject({ name: 'Qwen3Nvfp4Error', code: 'NON_FINITE_LOSS' })
    expect(failure).toMatchObject({ step: 5, key: 'model.layers.0' })
    expect(String(failure)).toMatch(
      /step 5: the loss is -?(nan|inf), first in the output of model\.layers\.0: nothing was updated\. Its 1 samples follow sample 4 of epoch 0.*There is no checkpoint$/,
    )
    await expect(trainer.run()).rejects.toBe(failure)
  })

  /** The error of a step whose weights an event of the step before has spoilt. */
  async function failureOf(data: TrainingData, options: Partial<TrainerOptions>): Promise<string> {
    await using model = await tinyModel({ weights: 'fp32' }, { ...tinyConfig, vocabSize: 259 })
    await using trainer = new Trainer({ model, data, ...basics, steps: 3, warmupSteps: 0, shuffle: false, ...options })
    const spoil = async () => {
      for await (const { type, step } of trainer) {
        const parameter = model.parameter('model.norm.weight')!
        if (type === 'step' && step === 2) await parameter.write((await parameter.read()).fill(3e38))
      }
    }
    return await spoil().then(() => 'none', String)
  }

  test('names the lines of its samples', async () => {
    const tokenizer = byteTokenizer()
    const pairs = writeData('pairs.tsv', 'a\t1\n# none\nb\t2\nc\t3\nd\t4\n\ne\t5\nf\t6\n')
    const data = await TrainingData.fromTsv(pairs, { tokenizer })
    const options = { maxTokens: 64, batchSize: 2 }
    expect(await failureOf(data, options)).toMatch(
      `2 samples follow sample 4 of epoch 0, in the order of that epoch: ${pairs}, lines 7, 8. There is`,
    )
    expect(await failureOf(data, { ...options, batchSize: 1, accumulate: 2 })).toMatch(`${pairs}, lines 7, 8. There is`)
    const own = await TrainingData.fromSamples([{ ids: [1, 2], labels: [1, 2] }])
    const mixed = TrainingData.mix([
      { data, weight: 6 },
      { data: own, weight: 1 },
    ])
    expect(await failureOf(mixed, { ...options, batchSize: 3, steps: 3 })).toMatch(
      /epoch 0, in the order of that epoch: \S+pairs.tsv, line 8. There is/,
    )
  })

  test('lists a hundred samples at most', async () => {
    const samples = Array.from({ length: 360 }, () => ({ ids: [1, 2], labels: [1, 2] }))
    const failure = await failureOf(await TrainingData.fromSamples(samples), { maxTokens: 240, pack: true })
    expect(failure).toMatch(
      /120 samples follow sample 240 of epoch 0.*: samples\[240\]; .*samples\[339\]; and 20 more\. /,
    )
  })
})

describe('misuse is refused before anything runs', () => {
  let model: Qwen3Nvfp4Model
  beforeAll(async () => {
    model = await tinyModel()
  })
  afterAll(() => model.dispose())

  test.each<[object, string]>([
    [{ model: {} }, 'Expected a Qwen3Nvfp4Model for model'],
    [{ data: [] }, 'Expected a TrainingData for data'],
    [{ maxTokens: 1 }, 'Expected an integer of at least 2 for maxTokens but received 1'],
    [{ steps: 2, epochs: 1 }, 'Expected nothing beside steps for epochs but received 1'],
    [{ optimizer: { weights: 'int4' } }, "Expected 'nvfp4' | 'nvfp4+residual' | 'bf16' | 'fp32' for weights"],
    [{ earlyStop: { patience: 1 } }, 'Expected a validation set, which earlyStop needs, for validation'],
    [{ probes: [{ prompt: 'hi' }] }, 'Expected a Tokenizer, which probes need, for tokenizer'],
    [{ resume: true }, 'Expected a path without checkpointDir for resume but received true'],
    [{ lossCurve: 'loss.jpg' }, 'Expected a path that ends in .svg or .png for lossCurve'],
    [{ loss: 'hidden-l1' }, "Expected a model, with the loss 'hidden-l1', for teacher"],
    [{ skipLossFactor: 1 }, 'Expected a finite number above 1 for skipLossFactor but received 1'],
    [{ learningRate: 1 }, 'for a key of options but received learningRate'],
    [{ steps: 5, warmupSteps: 9 }, 'Expected at most the 5 steps of the run for warmupSteps'],
    [{ trainable: { names: ['none'] } }, 'Expected at least one parameter for trainable but received none'],
  ])('%j', (options, message) => {
    expect(() => new Trainer({ model, data: batchSource(), maxTokens: 8, ...options } as TrainerOptions)).toThrow(
      message,
    )
  })
})
