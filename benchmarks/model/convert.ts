/**
 * Converting checkpoints, from page cache:
 *   npx tsx benchmarks/model/convert.ts [--shape 0.6b] [--layers 12] [--threads 2]
 *
 * A random model of the shapes of Qwen3-0.6B or Qwen3-4B is written as a bf16 directory and converted to every format:
 * MB/s of input, best of five, MB of it for each second of processor time, which says more on a machine that others use
 * too, and the highest resident memory above that before; beside a plain copy of the same input (read and write of 4 MiB
 * at a time, flushed) and the limit that is the lower of 60 % of it and 300 MB/s a thread. Then inspect of the largest
 * file. QN_ISA=avx2 is a processor without AVX-512.
 */
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { convert, exportCheckpoint, inspect, Qwen3Nvfp4Model, type ConvertOptions, type Qwen3Config } from 'qwen3-nvfp4'
import { qwen3Of4b } from '../../test/support/qwen3-4b'

const shapes: Record<string, Qwen3Config> = {
  '0.6b': {
    ...qwen3Of4b,
    hiddenSize: 1024,
    numHiddenLayers: 12,
    numAttentionHeads: 16,
    intermediateSize: 3072,
    tieWordEmbeddings: true,
  },
  '4b': qwen3Of4b,
}

const { values: given } = parseArgs({
  options: {
    shape: { type: 'string', default: '0.6b' },
    layers: { type: 'string' },
    threads: { type: 'string', default: '2' },
  },
})
const shape = shapes[given.shape]
if (!shape) throw new Error(`--shape is one of ${Object.keys(shapes).join(', ')}`)
const config: Qwen3Config = { ...shape, numHiddenLayers: Number(given.layers ?? shape.numHiddenLayers) }
const threads = Number(given.threads)

const rounds = 5

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now()
  await work()
  return (performance.now() - started) / 1000
}

async function best(work: () => Promise<unknown>): Promise<number> {
  let least = Infinity
  for (let i = 0; i < rounds; i++) least = Math.min(least, await seconds(work))
  return least
}

/** The highest resident memory during `work`, above that at its start. */
async function growth(work: () => Promise<unknown>): Promise<number> {
  globalThis.gc?.()
  const before = process.memoryUsage.rss()
  let most = before
  const timer = setInterval(() => (most = Math.max(most, process.memoryUsage.rss())), 5)
  await work()
  clearInterval(timer)
  return most - before
}

async function copy(from: string, to: string): Promise<void> {
  const [source, target] = [await open(from, 'r'), await open(to, 'w')]
  const buffer = new Uint8Array(4 << 20)
  for (;;) {
    const { bytesRead } = await source.read(buffer, 0, buffer.length)
    if (bytesRead === 0) break
    await target.write(buffer, 0, bytesRead)
  }
  await target.sync()
  await Promise.all([source.close(), target.close()])
}

async function main(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'qn-convert-'))
  try {
    const source = join(folder, 'source')
    const model = await Qwen3Nvfp4Model.initialize(config, { weights: 'bf16', threads })
    await exportCheckpoint(model, source, { format: 'hf-bf16', shardBytes: 1e12, verify: false, threads })
    await model.dispose()
    const weights = join(source, 'model.safetensors')
    const megabytes = statSync(weights).size / 1e6
    const copied = megabytes / (await best(() => copy(weights, join(folder, 'copy'))))
    await rm(join(folder, 'copy'))
    const limit = Math.min(0.6 * copied, 300 * threads)

    const rows: Record<string, object> = {}
    const cases: [string, ConvertOptions][] = [
      ['.dat, one level', { format: 'dat' }],
      ['.dat, one level, four over six', { format: 'dat', scaleRule: 'four-over-six' }],
      ['.dat, two levels', { format: 'dat', scales: 'two-level' }],
      ['.dat, one level, not verified', { format: 'dat', verify: false }],
      ['modelopt', { format: 'modelopt' }],
      ['compressed-tensors', { format: 'compressed-tensors' }],
      ['hf-bf16', { format: 'hf-bf16' }],
      ['GGUF, NVFP4', { format: 'gguf' }],
      ['GGUF, Q8_0', { format: 'gguf', weights: 'q8_0' }],
    ]
    for (const [name, options] of cases) {
      const target = join(folder, { dat: 'out.dat', gguf: 'out.gguf' }[options.format as string] ?? 'out')
      const work = async () => {
        await rm(target, { recursive: true, force: true })
        await convert(source, target, { ...options, threads, onWarning: () => {} })
      }
      const memory = await growth(work)
      const used = process.cpuUsage()
      const rate = megabytes / (await best(work))
      const { user, system } = process.cpuUsage(used)
      rows[name] = {
        'input, MB/s': Math.round(rate),
        'of the limit': `${Math.round((100 * rate) / limit)} %`,
        'MB a CPU second': Math.round((rounds * megabytes) / ((user + system) / 1e6)),
        'memory, MB': Math.round(memory / 1e6),
      }
      await rm(target, { recursive: true, force: true })
    }
    const largest = Math.max(config.vocabSize, config.intermediateSize) * config.hiddenSize * 2
    console.log(
      `${given.shape}, ${config.numHiddenLayers} layers, ${Math.round(megabytes)} MB, ${threads} threads; ` +
        `copy ${Math.round(copied)} MB/s, limit ${Math.round(limit)} MB/s, largest tensor ${Math.round(largest / 1e6)} MB`,
    )
    console.table(rows)
    const dat = join(folder, 'model.dat')
    await convert(source, dat, { weights: 'bf16', threads, onWarning: () => {} })
    console.log(`inspect, ${statSync(dat).size / 1e9} GB: ${(1000 * (await best(() => inspect(dat)))).toFixed(1)} ms`)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

void main()
