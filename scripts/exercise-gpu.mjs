/**
 * Runs every kernel of the model once on small shapes, for a checker that watches the GPU's memory:
 * `npm run test:gpu:sanitize` runs it under each tool of NVIDIA's compute-sanitizer.
 *
 *   node scripts/exercise-gpu.mjs [nvfp4] [dense] [masters]     which parts; all when none is named
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Qwen3Nvfp4Model } from 'qwen3-nvfp4'

const device = process.env['QN_TEST_DEVICE'] ?? 'cuda:0'

/** Heads of 64 in groups and of 128 alone; a vocabulary that is no multiple of 8. */
const tied = {
  hiddenSize: 256,
  numHiddenLayers: 2,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 64,
  intermediateSize: 512,
  vocabSize: 520,
  ropeTheta: 1_000_000,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
}
const untied = { ...tied, numAttentionHeads: 2, headDim: 128, vocabSize: 333, tieWordEmbeddings: false }
const idsOf = (count) => Array.from({ length: count }, (_, i) => (i * 37 + 11) % 333)

async function infer(model) {
  const rows = [idsOf(70), idsOf(70).reverse()]
  const attentionMask = rows.map((row, b) => row.map((_, t) => (b === 1 && t < 5 ? 0 : 1)))
  const result = await model.forward(rows, { logits: 'all', hiddenStates: true, attentionMask })
  await result.logits.toFloat32Array()
  await result.dispose()
  await (await model.forward(idsOf(9), { reference: true })).dispose()
  const cache = model.createKvCache({ maxTokens: 300 })
  for (const count of [65, 1, 8, 9]) await (await model.forwardWithKvCache(idsOf(count), cache)).dispose()
  const fork = await cache.fork()
  const sampling = { temperature: 0.8, topK: 20, topP: 0.9, repetitionPenalty: 1.1, topLogprobs: 3, seed: 1 }
  for (const options of [{}, sampling]) {
    for await (const token of model.generate(idsOf(5), { cache: fork, maxTokens: 6, stopTokens: [], ...options }))
      void token
  }
  await fork.dispose()
  await cache.dispose()
}

async function train(model, options) {
  const optimizer = model.createOptimizer({ lr: 1e-3, weightDecay: 0.01, ...options })
  const ids = [idsOf(40), idsOf(40).reverse()]
  for (const recompute of ['all', 'cheap', 'none']) await optimizer.trainStep({ ids, labels: ids }, { recompute })
  const segments = ids.map((row) => row.map((_, t) => Math.floor(t / 13)))
  await optimizer.trainStep({ ids: idsOf(8), labels: idsOf(8) })
  for (let i = 0; i < 2; i++) await (await model.loss(ids, ids, { segments })).backward()
  await optimizer.step({ maxGradNorm: 1 })
  await optimizer.dispose()
}

/** A model whose matrices are stored as `weights`, run and trained with every kind of state, and saved. */
async function exerciseStates(config, weights) {
  const folder = mkdtempSync(join(tmpdir(), 'qwen3-nvfp4-'))
  try {
    const model = await Qwen3Nvfp4Model.initialize(config, { device, seed: 1, stddev: 0.06, weights })
    await infer(model)
    for (const state of ['nvfp4', 'int8', 'bf16', 'fp32'])
      await train(model, { state, gradients: state === 'int8' ? 'bf16' : state === 'nvfp4' ? 'nvfp4' : 'fp32' })
    await model.saveDat(join(folder, 'model.dat'))
    await model.dispose()
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** What may stand behind NVFP4 weights. */
async function exerciseMasters() {
  for (const weights of ['nvfp4+residual', 'bf16', 'fp32']) {
    const model = await Qwen3Nvfp4Model.initialize(tied, { device, seed: 1, stddev: 0.06 })
    await train(model, { weights })
    await infer(model)
    await model.dispose()
  }
}

const parts = {
  nvfp4: () => exerciseStates(tied, 'nvfp4'),
  dense: () => exerciseStates(untied, 'bf16'),
  masters: exerciseMasters,
}
const names = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(parts)
for (const name of names) {
  if (!Object.hasOwn(parts, name)) throw new RangeError(`Expected one of ${Object.keys(parts)} but received ${name}`)
  await parts[name]()
}
console.log(`every kernel ran: ${names.join(', ')}`)
