/** Disposal, two calls at once, abort, workers, the event loop, and a process that ends by itself. */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { resolve } from 'node:path'
import { Worker } from 'node:worker_threads'
import { Qwen3Nvfp4Error, type Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { idsOf, slowConfig, slowIds, tinyConfig, tinyModel } from '../support/tiny-model'

const entry = resolve(__dirname, '../../dist/index.cjs')
const root = resolve(__dirname, '../..')

describe('dispose', () => {
  test('frees the memory when it resolves, behind the calls before it, and again is harmless', async () => {
    const model = await tinyModel()
    const running = model.forward(idsOf(8))
    const first = model.dispose()
    await Promise.all([running, first, model.dispose()])
    await expect(model.forward([1])).rejects.toMatchObject({ code: 'DISPOSED', message: 'the model was disposed' })
  })

  test('a disposed model takes its caches, optimizers and losses out of use', async () => {
    const model = await tinyModel()
    const cache = model.createKvCache({ maxTokens: 8 })
    const optimizer = model.createOptimizer()
    const loss = await model.loss(idsOf(4), idsOf(4))
    await model.dispose()
    const refusal = (object: string) => ({
      code: 'DISPOSED',
      message: `${object} belongs to a model that was disposed`,
    })
    await expect(cache.reset()).rejects.toMatchObject(refusal('the key/value cache'))
    await expect(optimizer.step()).rejects.toMatchObject(refusal('the optimizer'))
    await expect(loss.backward()).rejects.toMatchObject(refusal('the loss'))
    expect(() => model.createOptimizer()).toThrow('the model was disposed')
    await Promise.all([cache.dispose(), optimizer.dispose(), loss.dispose()])
  })

  test('a disposed object says so by name', async () => {
    const model = await tinyModel()
    const result = await model.forward([1], { hiddenStates: true })
    const cache = model.createKvCache({ maxTokens: 8 })
    const optimizer = model.createOptimizer()
    const loss = await model.loss(idsOf(4), idsOf(4))
    for (const object of [result, cache, optimizer, loss]) {
      await object.dispose()
      await object.dispose()
    }
    await expect(result.logits.toFloat32Array()).rejects.toThrow('the tensor was disposed')
    await expect(cache.reset()).rejects.toThrow('the key/value cache was disposed')
    await expect(model.forwardWithKvCache([1], cache)).rejects.toThrow('the key/value cache was disposed')
    await expect(optimizer.step()).rejects.toThrow('the optimizer was disposed')
    await expect(loss.backward()).rejects.toThrow('the loss was disposed')
    await model.dispose()
  })

  test('everything that was allocated on the device is free again', async () => {
    // A device of its own: on the others the collector may free what earlier tests left.
    const threads = 3
    const model = await tinyModel({ threads })
    const before = (await model.memory()).total
    for (let i = 0; i < 20; i++) {
      const other = await tinyModel({ seed: i, threads })
      const result = await other.forward(idsOf(16), { logits: 'all', hiddenStates: true })
      const cache = other.createKvCache({ maxTokens: 100 })
      await other.forwardWithKvCache(idsOf(70), cache).then((r) => r.dispose())
      const optimizer = other.createOptimizer({ weights: 'nvfp4+residual' })
      const loss = await other.loss(idsOf(8), idsOf(8))
      await loss.backward()
      await optimizer.step()
      for (const object of [result, cache, optimizer, loss, other]) await object.dispose()
    }
    expect((await model.memory()).total).toBe(before)
    await model.dispose()
  })

  test('losses that are forgotten are collected before they fill the memory', async () => {
    const model = await tinyModel({}, { ...slowConfig, numHiddenLayers: 2 })
    const ids = slowIds.slice(0, 128)
    const loss = await model.loss(ids, ids, { recompute: 'none' })
    const before = (await model.memory()).total
    await loss.dispose()
    const one = before - (await model.memory()).total
    const count = Math.ceil(600e6 / one)
    let most = 0
    for (let i = 0; i < count; i++) {
      await model.loss(ids, ids, { recompute: 'none' })
      most = Math.max(most, (await model.memory()).activations)
    }
    expect(most).toBeLessThan(300e6)
    await model.dispose()
  })

  test('Symbol.asyncDispose disposes', async () => {
    let outside: Qwen3Nvfp4Model
    {
      await using model = await tinyModel()
      outside = model
    }
    await expect(outside.forward([1])).rejects.toMatchObject({ code: 'DISPOSED' })
  })
})

describe('two calls at once', () => {
  test('on one model, both succeed in turn', async () => {
    const model = await tinyModel()
    const [a, b] = await Promise.all([model.forward(idsOf(5)), model.forward(idsOf(5))])
    expect(await a.logits.toFloat32Array()).toEqual(await b.logits.toFloat32Array())
    await model.dispose()
  })

  test('on one cache, the second is refused at once with BUSY, and the first is not disturbed', async () => {
    const model = await tinyModel()
    const cache = model.createKvCache({ maxTokens: 64 })
    const first = model.forwardWithKvCache(idsOf(5), cache)
    await expect(model.forwardWithKvCache(idsOf(5), cache)).rejects.toMatchObject({ code: 'BUSY' })
    await expect(cache.truncate(0)).rejects.toMatchObject({ code: 'BUSY' })
    await first
    expect(cache.seqLen).toBe(5)
    const long = model.createKvCache({ maxTokens: 5000 })
    const tokens = model.generate([1], { cache: long, maxTokens: 4000, maxRepeats: 0 })
    await tokens.next()
    await expect(model.forwardWithKvCache([1], long)).rejects.toMatchObject({ code: 'BUSY' })
    await tokens.return()
    await model.forwardWithKvCache([1], long)
    for (const object of [cache, long, model]) await object.dispose()
  })

  test('a cache of another model is refused', async () => {
    const [a, b] = [await tinyModel(), await tinyModel()]
    const cache = a.createKvCache({ maxTokens: 8 })
    await expect(b.forwardWithKvCache([1], cache)).rejects.toMatchObject({ code: 'STATE_MISMATCH' })
    await expect(b.forwardWithKvCache([1], {} as never)).rejects.toThrow('Expected a KvCache for cache')
    await Promise.all([a.dispose(), b.dispose()])
  })
})

describe('abort', () => {
  let model: Qwen3Nvfp4Model
  beforeAll(async () => {
    model = await tinyModel({}, slowConfig)
  })
  afterAll(() => model.dispose())

  test('a running forward pass rejects with the reason of the signal, long before it would end', async () => {
    const controller = new AbortController()
    const reason = new Error('enough')
    const run = model.forward(slowIds, { signal: controller.signal })
    setTimeout(() => controller.abort(reason), 5)
    await expect(run).rejects.toBe(reason)
  })

  test('a signal that is aborted already starts nothing', async () => {
    const reason = new Error('too late')
    const signal = AbortSignal.abort(reason)
    await expect(model.forward([1], { signal })).rejects.toBe(reason)
    await expect(model.loss([1, 2], [1, 2], { signal })).rejects.toBe(reason)
    await expect(tinyModel({ signal })).rejects.toBe(reason)
    await expect(model.generate([1], { signal }).next()).rejects.toBe(reason)
  })

  test('an aborted cached forward leaves the cache as it was', async () => {
    const cache = model.createKvCache({ maxTokens: 2000 })
    await model.forwardWithKvCache(idsOf(3), cache)
    const controller = new AbortController()
    const run = model.forwardWithKvCache(slowIds, cache, { signal: controller.signal })
    setTimeout(() => controller.abort(), 5)
    await expect(run).rejects.toMatchObject({ name: 'AbortError' })
    expect(cache.seqLen).toBe(3)
    await cache.dispose()
  })
})

test('the event loop runs on during a long forward pass: 99 % of delays under 20 ms', async () => {
  const model = await tinyModel({}, slowConfig)
  const histogram = monitorEventLoopDelay({ resolution: 1 })
  let ticks = 0
  const timer = setInterval(() => ticks++, 1)
  histogram.enable()
  await model.forward(slowIds)
  histogram.disable()
  clearInterval(timer)
  expect(ticks).toBeGreaterThan(10)
  expect(histogram.percentile(99) / 1e6).toBeLessThan(20)
  await model.dispose()
})

describe('workers', () => {
  const script = (body: string) => `
    const { parentPort } = require('node:worker_threads')
    const { Qwen3Nvfp4Model } = require(${JSON.stringify(entry)})
    const slowIds = ${JSON.stringify(slowIds)}
    ;(async () => {
      const model = await Qwen3Nvfp4Model.initialize(${JSON.stringify(slowConfig)}, { seed: 7, threads: 2 })
      ${body}
    })().catch((error) => parentPort.postMessage({ error: String(error) }))`

  const firstMessage = (worker: Worker) =>
    new Promise<unknown>((done, fail) => {
      worker.once('message', done)
      worker.once('error', fail)
    })

  test('a worker computes what the main thread computes', async () => {
    const worker = new Worker(
      script(`
      const result = await model.forward([1, 2, 3])
      parentPort.postMessage(await result.logits.toFloat32Array())
      await model.dispose()`),
      { eval: true },
    )
    const exited = new Promise((done) => worker.once('exit', done))
    const fromWorker = await firstMessage(worker)
    const model = await tinyModel({ stddev: 0.02 }, slowConfig)
    const result = await model.forward([1, 2, 3])
    expect(Array.from(fromWorker as Float32Array)).toEqual(Array.from(await result.logits.toFloat32Array()))
    expect(await exited).toBe(0)
    await model.dispose()
  })

  test.each([
    ['a forward pass', 'model.forward(slowIds); model.forward(slowIds)'],
    ['a training step', 'model.createOptimizer().trainStep({ ids: slowIds, labels: slowIds })'],
    [
      'generating',
      `for await (const token of model.generate([1], { maxTokens: 1e6, maxRepeats: 0 })) parentPort.postMessage('token')`,
    ],
  ])('a worker that is terminated during %s takes nothing else down', async (_, body) => {
    const worker = new Worker(script(`parentPort.postMessage('ready'); ${body}`), { eval: true })
    expect(await firstMessage(worker)).toBe('ready')
    await new Promise((done) => setTimeout(done, 20))
    expect(await worker.terminate()).toBe(1)
    const model = await tinyModel()
    await expect(model.forward([1])).resolves.toBeDefined()
    await model.dispose()
  })
})

describe('processes', () => {
  const run = (args: string[], input: string) =>
    execFileSync(process.execPath, args, { input, cwd: root, encoding: 'utf8', timeout: 60_000 })
  const body = `
    const config = ${JSON.stringify(tinyConfig)}
    const main = async () => {
      const model = await Qwen3Nvfp4Model.initialize(config, { threads: 2 })
      const result = await model.forward([1, 2, 3])
      console.log((await result.logits.toFloat32Array()).length)
    }
    main()`

  test('CommonJS imports the package by name, and the process ends by itself with everything undisposed', () => {
    expect(run(['--input-type=commonjs'], `const { Qwen3Nvfp4Model } = require('qwen3-nvfp4')\n${body}`)).toBe('96\n')
  })

  test('ESM imports the package by name, and the process ends by itself with everything undisposed', () => {
    expect(run(['--input-type=module'], `import { Qwen3Nvfp4Model } from 'qwen3-nvfp4'\n${body}`)).toBe('96\n')
  })

  const pinned = existsSync('/usr/bin/taskset') ? test : test.skip
  pinned('the default number of threads is what the process may use, not what the machine has (needs taskset)', () => {
    const text = `const { Qwen3Nvfp4Model } = require('qwen3-nvfp4')
      Qwen3Nvfp4Model.initialize(${JSON.stringify(tinyConfig)}).then((model) => console.log(model.threads))`
    const options = { input: text, cwd: root, encoding: 'utf8' } as const
    expect(execFileSync('taskset', ['-c', '0', process.execPath, '--input-type=commonjs'], options)).toBe('1\n')
  })

  test('process.exit() during a job ends at once', () => {
    const text = `const { Qwen3Nvfp4Model } = require('qwen3-nvfp4')
      Qwen3Nvfp4Model.initialize(${JSON.stringify(slowConfig)}, { threads: 2 }).then((model) => {
        model.forward(${JSON.stringify(slowIds)}); model.forward(${JSON.stringify(slowIds)})
        setTimeout(() => { console.log('bye'); process.exit(0) }, 20)
      })`
    expect(run(['--input-type=commonjs'], text)).toBe('bye\n')
  })

  test('an error of one module format is one of the other too', () => {
    const text = `import { createRequire } from 'node:module'
      import { Qwen3Nvfp4Error } from 'qwen3-nvfp4'
      const cjs = createRequire(import.meta.url)('qwen3-nvfp4')
      console.log(new cjs.Qwen3Nvfp4Error('BUSY', 'x') instanceof Qwen3Nvfp4Error)`
    expect(run(['--input-type=module'], text)).toBe('true\n')
    expect(new Qwen3Nvfp4Error('BUSY', 'x')).toBeInstanceOf(Error)
  })
})
