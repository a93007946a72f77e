/**
 * Makes a small random model and exports it in every directory format, with the logits that it has here:
 *   tsx scripts/interop/export.ts <folder>, then python3 scripts/interop/hf_load.py <folder>
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { exportCheckpoint, Qwen3Nvfp4Model, type Qwen3Config } from 'qwen3-nvfp4'
import { smallConfig } from './small-config'

const folder = process.argv[2]
if (!folder) throw new Error('Expected a folder to write into')

const config: Qwen3Config = { ...smallConfig, vocabSize: 1000, bosTokenId: 1, eosTokenIds: [2] }

async function main(): Promise<void> {
  mkdirSync(folder!, { recursive: true })
  const model = await Qwen3Nvfp4Model.initialize(config, { seed: 11, stddev: 0.08 })
  const ids = Array.from({ length: 97 }, (_, i) => (i * 389 + 17) % config.vocabSize)
  const result = await model.forward(ids, { logits: 'all' })
  const logits = await result.logits!.toFloat32Array()
  writeFileSync(join(folder!, 'ids.json'), JSON.stringify(ids))
  writeFileSync(join(folder!, 'logits.bin'), logits)
  for (const format of ['hf-bf16', 'hf-fp32', 'modelopt', 'compressed-tensors'] as const) {
    const { tensors } = await exportCheckpoint(model, join(folder!, format), { format, onWarning: () => {} })
    const inexact = tensors.filter(({ exact }) => !exact).length
    console.log(`${format}: ${tensors.length} parameters, ${inexact} of them not exact`)
  }
  await model.dispose()
}

void main()
