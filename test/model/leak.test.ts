/**
 * Resident memory over 200 lives of a model, measured in a child of its own. The first 100 fill caches (V8's, the
 * allocator's); from then on it must not grow: weights of 0.2 MB that leak in each life would be 20 MB.
 */
import { spawnSync } from 'node:child_process'
import { resolve } from 'node:path'
import { tinyConfig } from '../support/tiny-model'

const entry = resolve(__dirname, '../../dist/index.cjs')
const config = { ...tinyConfig, hiddenSize: 128, intermediateSize: 384, vocabSize: 512 }
const allowedBytes = 8e6

/** Runs `life` 200 times; bytes of growth from after the 100th to after the last, of the process and of the device. */
function growth(life: string): { resident: number; device: number } {
  const script = `
    const { Qwen3Nvfp4Model } = require(${JSON.stringify(entry)})
    const config = ${JSON.stringify(config)}
    const ids = Array.from({ length: 24 }, (_, i) => (i * 37 + 11) % 512)
    const make = (seed) => Qwen3Nvfp4Model.initialize(config, { seed, threads: 2 })
    const life = async (seed) => { ${life} }
    const settled = async () => {
      for (let i = 0; i < 3; i++) {
        global.gc()
        await new Promise((done) => setTimeout(done, 10))
      }
      return process.memoryUsage().rss
    }
    const main = async () => {
      const witness = await make(1)
      const device = (await witness.memory()).total
      for (let i = 0; i < 100; i++) await life(i)
      const before = await settled()
      for (let i = 100; i < 200; i++) await life(i)
      console.log(JSON.stringify({ resident: (await settled()) - before, device: (await witness.memory()).total - device }))
    }
    main().catch((error) => { console.error(error); process.exit(1) })`
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--expose-gc'], { input: script, encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
  return JSON.parse(stdout) as { resident: number; device: number }
}

test.each([
  [
    'initialize, forward, dispose',
    `const model = await make(seed)
     const result = await model.forward(ids, { logits: 'all', hiddenStates: true })
     await result.logits.toFloat32Array()
     await result.dispose()
     await model.dispose()`,
  ],
  [
    'loss, backward, step, trainStep, dispose',
    `const model = await make(seed)
     const optimizer = model.createOptimizer({ weights: 'nvfp4+residual' })
     const loss = await model.loss(ids, ids)
     await loss.backward()
     await optimizer.step({ maxGradNorm: 1 })
     await optimizer.trainStep({ ids, labels: ids })
     await optimizer.dispose()
     await model.dispose()`,
  ],
  [
    'cache, fork, generate, dispose',
    `const model = await make(seed)
     const cache = model.createKvCache({ maxTokens: 200 })
     await model.forwardWithKvCache(ids, cache, { logits: 'none' })
     const fork = await cache.fork()
     for await (const { index } of model.generate([1], { cache: fork, maxTokens: 20, maxRepeats: 0 })) if (index === 9) break
     await fork.dispose()
     await cache.dispose()
     await model.dispose()`,
  ],
  [
    'failures: a full cache, an abort, ids out of range, a configuration that contradicts itself',
    `const model = await make(seed)
     const cache = model.createKvCache({ maxTokens: 4 })
     await model.forwardWithKvCache(ids, cache).catch(() => {})
     const controller = new AbortController()
     const run = model.forward(ids, { signal: controller.signal })
     controller.abort()
     await run.catch(() => {})
     await model.forward([9999]).catch(() => {})
     await Qwen3Nvfp4Model.initialize({ ...config, numKeyValueHeads: 3 }).catch(() => {})
     await cache.dispose()
     await model.dispose()`,
  ],
  [
    'nothing disposed: the collector frees it',
    `const model = await make(seed)
     await model.forward(ids, { logits: 'all' })
     await model.loss(ids, ids)
     if (seed % 10 === 9) {
       global.gc()
       await new Promise((done) => setTimeout(done, 5))
     }`,
  ],
])('resident memory is flat over 200 times: %s', (_, life) => {
  const { resident, device } = growth(life)
  expect(resident).toBeLessThan(allowedBytes)
  expect(device).toBe(0)
})
