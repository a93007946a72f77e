/**
 * Checkpoints saved by Hugging Face transformers, with what it computes from them in fp32: ../shared/data/hf-parity/*.
 * Everything is read from the files, so any checkpoint of the same kind may be added there.
 */
import { existsSync, readdirSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { Qwen3Nvfp4Model, SafetensorsReader } from 'qwen3-nvfp4'
import { expectClose } from '../support/tiny-model'

const root = process.env['QN_HF_PARITY'] ?? resolve(__dirname, '../../../shared/data/hf-parity')
const checkpoints = existsSync(root)
  ? readdirSync(root).filter((name) => existsSync(join(root, name, 'reference.safetensors')))
  : []
if (checkpoints.length === 0) console.log(`skipped: no Hugging Face references in ${root}`)

type Reference = Awaited<ReturnType<typeof readReference>>

async function readReference(folder: string) {
  const reader = await SafetensorsReader.open(join(folder, 'reference.safetensors'))
  const tensors = new Map<string, { shape: number[]; data: Float32Array | Int32Array }>()
  for (const { key, shape } of reader.entries) {
    const data = await reader.read(key)
    tensors.set(key, { shape, data: data as Float32Array | Int32Array })
  }
  await reader.close()
  const get = (key: string) => {
    const found = tensors.get(key)
    if (!found) throw new Error(`no ${key} in ${folder}`)
    return found
  }
  return {
    keys: [...tensors.keys()],
    floats: (key: string) => get(key).data as Float32Array,
    /** An i32[B, T] tensor as rows. */
    rows(key: string): number[][] {
      const { shape, data } = get(key)
      const [batch, tokens] = shape as [number, number]
      return Array.from({ length: batch }, (_, b) => Array.from(data.subarray(b * tokens, (b + 1) * tokens)))
    },
    integers: (key: string) => Array.from(get(key).data),
  }
}

/** Within 1e-4 of the largest gradient of the tensor: single elements near zero have no relative precision. */
function expectGradient(actual: Float32Array, expected: Float32Array): void {
  const largest = expected.reduce((max, value) => Math.max(max, Math.abs(value)), 0)
  expectClose(actual, expected, 1e-4 * largest)
}

/**
 * Within 1e-5, but for one element in a thousand. AdamW divides by the size of the gradient, so an element whose gradient
 * passes near zero takes a step whose direction the last bits of fp32 decide, and two right programs part there. PyTorch
 * itself, run on tiny-untied in float64, parts from the float32 reference in 5 elements by up to 1.9e-4 after these five
 * steps of 1e-3, and run in float32 on another processor in 7 by up to 3.0e-4; on tiny-tied in none.
 */
function expectTrained(actual: Float32Array, expected: Float32Array): void {
  expectClose(actual, expected, 5e-4)
  const apart = expected.filter((value, i) => !(Math.abs(actual[i]! - value) <= 1e-5)).length
  expect(apart).toBeLessThanOrEqual(expected.length / 1000)
}

const suite = checkpoints.length > 0 ? describe.each(checkpoints) : describe.skip.each(['no checkpoint'])
suite('hf-parity %s', (name) => {
  let model: Qwen3Nvfp4Model
  let reference: Reference
  beforeAll(async () => {
    reference = await readReference(join(root, name))
    model = await Qwen3Nvfp4Model.load(join(root, name), { weights: 'fp32' })
  })
  afterAll(() => model?.dispose())

  test('logits and every hidden state match', async () => {
    const result = await model.forward(reference.rows('input_ids'), { logits: 'all', hiddenStates: true })
    expectClose(await result.logits.toFloat32Array(), reference.floats('logits'), 1e-4, 1e-4)
    expect(result.hiddenStates).toHaveLength(model.config.numHiddenLayers + 1)
    for (const [i, state] of result.hiddenStates.entries()) {
      expectClose(await state.toFloat32Array(), reference.floats(`hidden.${i}`), 1e-4, 1e-4)
    }
    await result.dispose()
  })

  test.each(['all', 'cheap', 'none'] as const)('loss and every gradient match, recompute %s', async (recompute) => {
    const loss = await model.loss(reference.rows('input_ids'), reference.rows('labels'), { recompute })
    expectClose([loss.value], reference.floats('loss'), 1e-4, 1e-4)
    await loss.backward()
    const gradients = reference.keys.filter((key) => key.startsWith('grad.'))
    expect(gradients).toHaveLength([...model.parameters()].length)
    for (const key of gradients) {
      const actual = await model.parameter(key.slice('grad.'.length))!.grad()
      expectGradient(actual!, reference.floats(key))
    }
    await model.zeroGrad()
  })

  test('backward of the cross-entropy as a loss of the caller gives the same gradients', async () => {
    const [ids, labels] = [reference.rows('input_ids'), reference.rows('labels')]
    const result = await model.forward(ids, { gradient: true })
    const { logits } = result
    const [batch, tokens, V] = logits.shape as [number, number, number]
    const dLogits = crossEntropyGradient(await logits.toFloat32Array(), labels, batch, tokens, V)
    await result.backward(dLogits)
    for (const key of reference.keys.filter((key) => key.startsWith('grad.'))) {
      const actual = await model.parameter(key.slice('grad.'.length))!.grad()
      expectGradient(actual!, reference.floats(key))
    }
    await model.zeroGrad()
    await result.dispose()
  })

  test('chunks on one cache match', async () => {
    const ids = reference.rows('input_ids')[0]!
    const cache = model.createKvCache({ maxTokens: ids.length })
    const expected = reference.floats('cache.logits')
    let begin = 0
    for (const count of reference.integers('cache.chunks')) {
      const result = await model.forwardWithKvCache(ids.slice(begin, begin + count), cache, { logits: 'all' })
      const V = model.config.vocabSize
      expectClose(await result.logits.toFloat32Array(), expected.subarray(begin * V, (begin + count) * V), 1e-4, 1e-4)
      begin += count
      expect(cache.seqLen).toBe(begin)
    }
    await cache.dispose()
  })

  test('greedy ids are identical', async () => {
    const ids = reference.rows('greedy.ids')[0]!
    const [promptLength] = reference.integers('greedy.prompt_len') as [number]
    const produced: number[] = []
    const options = { maxTokens: ids.length - promptLength, stopTokens: [], maxRepeats: 0 }
    for await (const { id } of model.generate(ids.slice(0, promptLength), options)) produced.push(id)
    expect(produced).toEqual(ids.slice(promptLength))
  })

  test.each(['backward and step', 'trainStep'])('AdamW steps with fp32 states match: %s', async (how) => {
    const own = await Qwen3Nvfp4Model.load(join(root, name), { weights: 'fp32' })
    const optimizer = own.createOptimizer({
      lr: 1e-3,
      betas: [0.9, 0.999],
      eps: 1e-8,
      weightDecay: 0.01,
      moments: 'fp32',
    })
    const [ids, labels] = [reference.rows('input_ids'), reference.rows('labels')]
    for (const expected of reference.floats('adamw.losses')) {
      let value: number
      if (how === 'trainStep') {
        value = (await optimizer.trainStep({ ids, labels })).loss
      } else {
        const loss = await own.loss(ids, labels)
        value = loss.value
        await loss.backward()
        await optimizer.step()
      }
      expectClose([value], [expected], 1e-4)
    }
    for (const parameter of own.parameters()) {
      expectTrained(await parameter.read(), reference.floats(`adamw.final.${parameter.name}`))
    }
    await optimizer.dispose()
    await own.dispose()
  })
})

/** (softmax - one-hot of the next label) / number of counted labels, in double. */
function crossEntropyGradient(
  logits: Float32Array,
  labels: number[][],
  batch: number,
  tokens: number,
  V: number,
): Float32Array {
  const gradient = new Float32Array(logits.length)
  const counted = labels.flatMap((row) => row.slice(1)).filter((label) => label !== -100).length
  for (let b = 0; b < batch; b++) {
    for (let t = 0; t + 1 < tokens; t++) {
      const label = labels[b]![t + 1]!
      if (label === -100) continue
      const row = (b * tokens + t) * V
      const values = logits.subarray(row, row + V)
      const max = values.reduce((a, x) => Math.max(a, x), -Infinity)
      const sum = values.reduce((a, x) => a + Math.exp(x - max), 0)
      values.forEach((x, v) => (gradient[row + v] = (Math.exp(x - max) / sum - (v === label ? 1 : 0)) / counted))
    }
  }
  return gradient
}
