/** The small files of a Hugging Face directory: configuration, index, and what comes along from the source. */
import { copyFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import type { Qwen3Config } from '../../types/config'
import type { ExportFormat } from '../../types/convert'
import { ioError } from '../errors'
import { exists } from '../model/checkpoint-files'
import { toConfigJson } from '../model/config'
import { readJson } from '../model/config-fields'
import { findTokenizer } from './gguf-metadata'
import { describesModel } from '../model/save-dat'
import type { PlannedTensor } from './plan'
import type { WrittenFile } from './sinks'

/** Copied where the source has them; none is needed by the weights. */
const companions = [
  'tokenizer.json',
  'tokenizer_config.json',
  'vocab.json',
  'merges.txt',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  'generation_config.json',
]

const torchTypes = { fp32: 'float32', fp16: 'float16', bf16: 'bfloat16' } as const

/** Writes everything but the weights; gives the names. `modelDir` has the source's own files. */
export async function writeDirectoryFiles(
  folder: string,
  modelDir: string | undefined,
  config: Qwen3Config,
  format: ExportFormat,
  tensors: readonly PlannedTensor[],
  files: readonly WrittenFile[],
): Promise<string[]> {
  const ignored = denseModules(tensors)
  const written: Record<string, unknown> = {
    'config.json': await configJson(modelDir, config, format, ignored),
    'generation_config.json': generationConfig(config),
  }
  if (format === 'modelopt') written['hf_quant_config.json'] = modelOptFile(ignored)
  if (files.length > 1) written['model.safetensors.index.json'] = indexOf(files)
  for (const [name, json] of Object.entries(written)) await writeJson(join(folder, name), json)
  return [...new Set([...Object.keys(written), ...(await copyCompanions(modelDir, folder))])]
}

/**
 * Copies what a checkpoint is used with, such as its tokenizer, where the target has none; gives the names. A GGUF in
 * place of the folder has a tokenizer in it, which becomes the files of one.
 */
export async function copyCompanions(modelDir: string | undefined, folder: string, replaces = true): Promise<string[]> {
  if (modelDir?.endsWith('.gguf')) return writeTokenizer(modelDir, folder, replaces)
  const copied: string[] = []
  for (const name of modelDir ? companions : []) {
    const from = join(modelDir!, name)
    if (!(await exists(from)) || (!replaces && (await exists(join(folder, name))))) continue
    try {
      await copyFile(from, join(folder, name))
    } catch (cause) {
      throw ioError('write', join(folder, name), cause)
    }
    copied.push(name)
  }
  return copied
}

async function writeTokenizer(gguf: string, folder: string, replaces: boolean): Promise<string[]> {
  const found = await findTokenizer(gguf)
  if ('reason' in found) return []
  const written: string[] = []
  for (const [name, json] of Object.entries({
    'tokenizer.json': found.tokenizer,
    'tokenizer_config.json': found.config,
  })) {
    if (!replaces && (await exists(join(folder, name)))) continue
    await writeJson(join(folder, name), json)
    written.push(name)
  }
  return written
}

async function writeJson(path: string, json: unknown): Promise<void> {
  try {
    await writeFile(path, `${JSON.stringify(json, null, 2)}\n`)
  } catch (cause) {
    throw ioError('write', path, cause)
  }
}

/** The source's own fields stay, as far as they are about the model and not about how it was stored. */
async function configJson(
  modelDir: string | undefined,
  config: Qwen3Config,
  format: ExportFormat,
  ignored: readonly string[],
): Promise<Record<string, unknown>> {
  const path = modelDir && join(modelDir, 'config.json')
  const own = path && (await describesModel(path, config)) ? await readJson(path) : {}
  const { quantization_config: _, ...kept } = own as Record<string, unknown>
  const storage = format.startsWith('hf-') ? (format.slice(3) as keyof typeof torchTypes) : 'bf16'
  const type = torchTypes[storage]
  const quantization =
    format === 'modelopt' ? modelOpt(ignored) : format === 'compressed-tensors' ? compressedTensors(ignored) : undefined
  return {
    ...toConfigJson(config),
    ...kept,
    tie_word_embeddings: config.tieWordEmbeddings,
    torch_dtype: type,
    ...('dtype' in kept && { dtype: type }),
    ...(quantization && { quantization_config: quantization }),
  }
}

function generationConfig({ bosTokenId, eosTokenIds }: Qwen3Config): Record<string, unknown> {
  return {
    ...(bosTokenId !== undefined && { bos_token_id: bosTokenId }),
    ...(eosTokenIds && { eos_token_id: eosTokenIds.length === 1 ? eosTokenIds[0] : eosTokenIds }),
  }
}

/** Linear modules that are not NVFP4: the head always counts, as it is a module even where it is the embedding. */
function denseModules(tensors: readonly PlannedTensor[]): string[] {
  const dense = tensors.filter(
    ({ to, isVector, name }) => to !== 'nvfp4' && !isVector && !name.includes('embed_tokens'),
  )
  return [...new Set(['lm_head', ...dense.map(({ name }) => name.replace(/\.weight$/, ''))])]
}

/** Weights alone are quantised: W4A16 in ModelOpt's words. Loaders know the producer by this name. */
const producer = { name: 'modelopt', version: 'qwen3-nvfp4' }

function modelOpt(ignored: readonly string[]): Record<string, unknown> {
  return {
    quant_method: 'modelopt',
    quant_algo: 'W4A16_NVFP4',
    group_size: 16,
    config_groups: {
      group_0: { targets: ['Linear'], weights: { dynamic: false, group_size: 16, num_bits: 4, type: 'float' } },
    },
    ignore: ignored,
    producer,
  }
}

function modelOptFile(ignored: readonly string[]): Record<string, unknown> {
  const quantization = {
    quant_algo: 'W4A16_NVFP4',
    kv_cache_quant_algo: null,
    group_size: 16,
    exclude_modules: ignored,
  }
  return { producer, quantization }
}

function compressedTensors(ignored: readonly string[]): Record<string, unknown> {
  const weights = {
    actorder: null,
    block_structure: null,
    dynamic: false,
    group_size: 16,
    num_bits: 4,
    observer: 'minmax',
    observer_kwargs: {},
    strategy: 'tensor_group',
    symmetric: true,
    type: 'float',
  }
  return {
    quant_method: 'compressed-tensors',
    format: 'nvfp4-pack-quantized',
    quantization_status: 'compressed',
    global_compression_ratio: null,
    kv_cache_scheme: null,
    config_groups: {
      group_0: { targets: ['Linear'], weights, input_activations: null, output_activations: null },
    },
    ignore: ignored,
  }
}

function indexOf(files: readonly WrittenFile[]): Record<string, unknown> {
  const map = files.flatMap(({ path, parts }) => parts.map(({ key }) => [key, basename(path)] as const))
  const bytes = files.flatMap(({ parts }) => parts).reduce((sum, part) => sum + part.bytes, 0)
  map.sort(([a], [b]) => (a < b ? -1 : 1))
  return { metadata: { total_size: bytes }, weight_map: Object.fromEntries(map) }
}
