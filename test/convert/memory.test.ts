/** The memory that a conversion takes, measured in a child of its own. */
import { spawnSync } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { toConfigJson, writeSafetensors, type ConvertOptions, type Qwen3Config } from 'qwen3-nvfp4'
import { denseConfig, shapesOf } from '../support/dense-directory'
import { temporaryFolder } from '../support/files'

const entry = resolve(__dirname, '../../dist/index.cjs')
const config: Qwen3Config = { ...denseConfig, hiddenSize: 512, intermediateSize: 32768, vocabSize: 1 << 16 }
/** That of the embedding, 67 MB; the file has 273. */
const largestBytes = 2 * config.vocabSize * config.hiddenSize

/** Zeros: what they are makes no difference to memory. */
async function writeZeros(folder: string): Promise<string> {
  mkdirSync(folder)
  const tensors = [...shapesOf(config)].map(([name, shape]) => {
    const data = new Uint16Array(shape.reduce((a, b) => a * b))
    return [name, { dtype: 'bfloat16', shape, data }] as const
  })
  await writeSafetensors(join(folder, 'model.safetensors'), new Map(tensors))
  writeFileSync(join(folder, 'config.json'), JSON.stringify(toConfigJson(config)))
  return folder
}

/** By how much a process that has loaded the addon grows at most. (resourceUsage().maxRSS counts the parent's memory too.) */
function growth(source: string, target: string, options: ConvertOptions): number {
  const script = `
    const { readFileSync } = require('node:fs')
    const { convert, quantizeNvfp4 } = require(${JSON.stringify(entry)})
    const main = async () => {
      await quantizeNvfp4(new Float32Array(16), { rows: 1, cols: 16 })
      const before = process.memoryUsage.rss()
      await convert(${JSON.stringify(source)}, ${JSON.stringify(target)}, ${JSON.stringify({ threads: 2, ...options })})
      const peak = 1024 * Number(readFileSync('/proc/self/status', 'utf8').match(/VmHWM:\\s*(\\d+)/)[1])
      console.log(peak - before)
    }
    main().catch((error) => { console.error(error); process.exit(1) })`
  const { status, stdout, stderr } = spawnSync(process.execPath, { input: script, encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
  return Number(stdout)
}

const onLinux = process.platform === 'linux' ? test : test.skip

onLinux('is below the largest tensor, where three times that are promised', async () => {
  const folder = temporaryFolder()
  const source = await writeZeros(join(folder, 'source'))
  for (const options of [
    { format: 'dat', scaleRule: 'four-over-six' },
    { format: 'dat', scales: 'two-level', embedding: 'nvfp4' },
    { format: 'modelopt' },
    { format: 'hf-bf16' },
    { format: 'gguf', weights: 'q8_0' },
  ] satisfies ConvertOptions[]) {
    const target = join(folder, 'target')
    const grown = growth(source, target, options)
    expect({ options, grown, isBelow: grown < largestBytes }).toMatchObject({ isBelow: true })
    rmSync(target, { recursive: true })
  }
})
