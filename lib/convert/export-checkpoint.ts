import { randomBytes } from 'node:crypto'
import { mkdir, rm } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import type { ConvertResult, ExportOptions } from '../../types/convert'
import { checkOneOf, checkOptions, checkPath, wrongType } from '../check'
import { ioError } from '../errors'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'
import { convert } from './convert'

const formats = ['hf-bf16', 'hf-fp16', 'hf-fp32', 'modelopt', 'compressed-tensors', 'gguf'] as const

/**
 * Writes a model as a Hugging Face directory or a GGUF, for other runtimes; `model.saveDat` writes a `.dat`. The weights
 * pass through a file of their own beside the target, which takes as much room as a `.dat` of the model and is removed again.
 *
 * @example
 * await exportCheckpoint(model, 'tuned', { format: 'compressed-tensors', modelDir: 'Qwen3-4B' })
 */
export async function exportCheckpoint(
  model: Pick<Qwen3Nvfp4Model, 'config' | 'saveDat'>,
  folder: string | URL,
  options: ExportOptions,
): Promise<ConvertResult> {
  const target = resolve(checkPath('folder', folder))
  const { format, signal } = checkOptions(options)
  if (format === undefined) throw wrongType(`one of ${formats.join(', ')}`, 'format', format)
  checkOneOf('format', format, formats)
  const scratch = join(dirname(target), `.${basename(target)}.${process.pid}.${randomBytes(4).toString('hex')}.weights`)
  try {
    await mkdir(scratch)
  } catch (cause) {
    throw ioError('write', target, cause)
  }
  try {
    const weights = join(scratch, 'model.dat')
    await model.saveDat(weights, { signal })
    // Tensors that came with the model's file and are not its own have no place in other formats.
    return await convert(weights, target, { modelDir: scratch, ...options, config: model.config, strict: false })
  } finally {
    await rm(scratch, { recursive: true, force: true }).catch(() => {})
  }
}
