/**
 * Loading a `.dat` from page cache: npx tsx benchmarks/model/load.ts [layers = 12]
 *
 * A random model of Qwen3-0.6B's layer shapes is saved and loaded again in every form; GB/s of file bytes, best of five,
 * beside a plain read of the same file into one buffer.
 */
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Qwen3Nvfp4Model, type LoadOptions, type Qwen3Config } from 'qwen3-nvfp4'

const config: Qwen3Config = {
  hiddenSize: 1024,
  numHiddenLayers: Number(process.argv[2] ?? 12),
  numAttentionHeads: 16,
  numKeyValueHeads: 8,
  headDim: 128,
  intermediateSize: 3072,
  vocabSize: 32768,
  ropeTheta: 1e6,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
}

async function best(runs: number, work: () => Promise<void> | void): Promise<number> {
  let seconds = Infinity
  for (let i = 0; i < runs; i++) {
    const started = performance.now()
    await work()
    seconds = Math.min(seconds, (performance.now() - started) / 1000)
  }
  return seconds
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
    for (const [name, weights, options] of cases) {
      const path = join(folder, `${weights}.dat`)
      {
        const model = await Qwen3Nvfp4Model.initialize(config, { weights })
        await model.saveDat(path)
        await model.dispose()
      }
      const gigabytes = statSync(path).size / 1e9
      const load = async () => (await Qwen3Nvfp4Model.load(path, options)).dispose()
      await load()
      const seconds = await best(5, load)
      const plain = await best(5, () => void readFileSync(path))
      rows[name] = {
        'file, GB': gigabytes.toFixed(3),
        'load, GB/s': (gigabytes / seconds).toFixed(2),
        'readFileSync, GB/s': (gigabytes / plain).toFixed(2),
      }
    }
    console.table(rows)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

void main()
