/**
 * Loading a `.dat` from page cache:
 *   npx tsx benchmarks/model/load.ts [--device cpu] [--shape 0.6b] [--layers 12] [--stored nvfp4,bf16]
 *
 * A random model of the layer shapes of Qwen3-0.6B (with a smaller vocabulary) or Qwen3-4B is made, saved, and loaded
 * again in every form: GB/s of file bytes, best of five, beside a plain read of the same file into one buffer. Making
 * it includes opening the GPU in the first row.
 */
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { Qwen3Nvfp4Model, type LoadOptions, type Qwen3Config } from 'qwen3-nvfp4'
import { qwen3Of4b } from '../../test/support/qwen3-4b'

const shapes: Record<string, Qwen3Config> = {
  '0.6b': {
    ...qwen3Of4b,
    hiddenSize: 1024,
    numHiddenLayers: 12,
    numAttentionHeads: 16,
    intermediateSize: 3072,
    vocabSize: 32768,
  },
  '4b': qwen3Of4b,
}

const { values: given } = parseArgs({
  options: {
    device: { type: 'string', default: 'cpu' },
    shape: { type: 'string', default: '0.6b' },
    layers: { type: 'string' },
    stored: { type: 'string', default: 'nvfp4,bf16' },
  },
})
const { device } = given
const shape = shapes[given.shape]
if (!shape) throw new Error(`--shape is one of ${Object.keys(shapes).join(', ')}`)
const config: Qwen3Config = { ...shape, numHiddenLayers: Number(given.layers ?? shape.numHiddenLayers) }

async function seconds(work: () => Promise<unknown> | unknown): Promise<number> {
  const started = performance.now()
  await work()
  return (performance.now() - started) / 1000
}

async function best(runs: number, work: () => Promise<number>): Promise<number> {
  let least = Infinity
  for (let i = 0; i < runs; i++) least = Math.min(least, await work())
  return least
}

async function load(path: string, options: LoadOptions): Promise<number> {
  let model!: Qwen3Nvfp4Model
  const taken = await seconds(async () => (model = await Qwen3Nvfp4Model.load(path, { ...options, device })))
  await model.dispose()
  return taken
}

async function main(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'qn-load-'))
  try {
    const rows: Record<string, object> = {}
    const cases: [string, 'nvfp4' | 'bf16', LoadOptions][] = [
      ['NVFP4 as stored', 'nvfp4', {}],
      ['NVFP4 to bf16', 'nvfp4', { weights: 'bf16' }],
      ['bf16 as stored', 'bf16', {}],
      ['bf16 to NVFP4, two levels', 'bf16', { weights: 'nvfp4', embedding: 'nvfp4' }],
    ]
    for (const [name, weights, options] of cases.filter(([, stored]) => given.stored.split(',').includes(stored))) {
      const path = join(folder, `${weights}.dat`)
      let model!: Qwen3Nvfp4Model
      const made = await seconds(async () => (model = await Qwen3Nvfp4Model.initialize(config, { weights, device })))
      const saved = await seconds(() => model.saveDat(path))
      await model.dispose()
      const gigabytes = statSync(path).size / 1e9
      await load(path, options)
      const loaded = await best(5, () => load(path, options))
      const plain = await best(5, () => seconds(() => gigabytes < 2 && readFileSync(path)))
      rows[name] = {
        'file, GB': gigabytes.toFixed(3),
        'make, s': made.toFixed(3),
        'save, s': saved.toFixed(3),
        'load, s': loaded.toFixed(3),
        'load, GB/s': (gigabytes / loaded).toFixed(2),
        'readFileSync, GB/s': gigabytes < 2 ? (gigabytes / plain).toFixed(2) : 'too large for it',
      }
    }
    console.log(`${device}, ${given.shape}, ${config.numHiddenLayers} layers`)
    console.table(rows)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

void main()
