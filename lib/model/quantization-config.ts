/** What a config.json or hf_quant_config.json says about quantised weights: NVFP4 and bitsandbytes are read, others refused. */
import { join } from 'node:path'
import { Fields, objectOf, readJson } from './config-fields'

export interface Quantization {
  format: 'modelopt' | 'compressed-tensors' | 'bitsandbytes'
  /** The number type of quantised keys and values, which a checkpoint of weights can be used without. */
  kvCache?: string
}

const supported =
  '"modelopt" (quant_algo NVFP4 or W4A16_NVFP4, also by layer), "compressed-tensors" (format nvfp4-pack-quantized) or "bitsandbytes" (4 bits)'
const algorithms = ['NVFP4', 'W4A16_NVFP4']
/** ModelOpt's word for an algorithm of each layer's own. */
const mixed = 'MIXED_PRECISION'

/** The quantisation of a Hugging Face directory; undefined for dense weights. */
export async function readQuantization(folder: string): Promise<Quantization | undefined> {
  const config = join(folder, 'config.json')
  const json = await readJson(config, true)
  const field = json === undefined ? undefined : new Fields(objectOf(json, config), config)
  const inConfig = field?.has('quantization_config') ? field.object('quantization_config') : undefined
  const isWhole = inConfig && (inConfig.get('quant_algo') !== mixed || inConfig.has('quantized_layers'))
  if (isWhole) return parseQuantization(inConfig)
  // ModelOpt's older exports have this file alone, and others name each layer here alone.
  const own = join(folder, 'hf_quant_config.json')
  const quantization = await readJson(own, true)
  if (quantization !== undefined) return parseModelOpt(new Fields(objectOf(quantization, own), own))
  return inConfig && parseQuantization(inConfig)
}

/** `quantization_config` of a config.json. */
export function parseQuantization(field: Fields): Quantization {
  const method = field.has('quant_method') ? field.get('quant_method') : undefined
  if (method === 'compressed-tensors') return parseCompressedTensors(field)
  // Before it named methods, transformers wrote these fields alone.
  const isBitsandbytes = method === undefined && (field.has('load_in_4bit') || field.has('load_in_8bit'))
  if (method === 'bitsandbytes' || isBitsandbytes) return parseBitsandbytes(field)
  if (typeof method === 'string' && method.startsWith('modelopt')) return parseModelOpt(field)
  throw field.unsupported('quant_method', supported)
}

/** In config.json the fields stand at the top, in hf_quant_config.json under `quantization`. */
function parseModelOpt(outer: Fields): Quantization {
  const field = outer.has('quantization') ? outer.object('quantization') : outer
  if (field.text('quant_algo').toUpperCase() === mixed) {
    // Without the names their tensors say as much, in other words.
    const layers = field.has('quantized_layers') ? field.object('quantized_layers') : undefined
    for (const name of Object.keys(layers?.json ?? {})) requireNvfp4(layers!.object(name))
  } else {
    requireNvfp4(field)
    forEachGroup(field, requireBlocksOf16)
  }
  const kvCache = field.has('kv_cache_quant_algo') ? field.text('kv_cache_quant_algo') : undefined
  const scheme = field.has('kv_cache_scheme') ? 'FP8' : undefined
  return { format: 'modelopt', kvCache: kvCache ?? scheme }
}

/** Layers that are not named are dense, as their tensors say. */
function requireNvfp4(field: Fields): void {
  if (!algorithms.includes(field.text('quant_algo').toUpperCase())) {
    throw field.unsupported('quant_algo', algorithms.map((name) => `"${name}"`).join(' or '))
  }
  requireBlocksOf16(field)
}

function parseCompressedTensors(field: Fields): Quantization {
  const format = field.get('format')
  if (format !== 'nvfp4-pack-quantized') throw field.unsupported('format', '"nvfp4-pack-quantized"')
  if (field.has('sparsity_config')) {
    const sparsity = field.object('sparsity_config')
    if (sparsity.has('format') && sparsity.get('format') !== 'dense') throw sparsity.unsupported('format', '"dense"')
  }
  forEachGroup(field, (weights) => {
    if (weights.has('num_bits') && weights.get('num_bits') !== 4) throw weights.unsupported('num_bits', '4')
    if (weights.has('type') && weights.get('type') !== 'float') throw weights.unsupported('type', '"float"')
    if (weights.has('symmetric') && !weights.flag('symmetric')) throw weights.unsupported('symmetric', 'true')
    if (weights.has('actorder') && weights.get('actorder') !== false) throw weights.unsupported('actorder', 'none')
    requireBlocksOf16(weights)
  })
  return { format: 'compressed-tensors', kvCache: field.has('kv_cache_scheme') ? 'FP8' : undefined }
}

/** Which table the weights have, and whether twice, their own tensors say. */
function parseBitsandbytes(field: Fields): Quantization {
  if (field.flag('load_in_8bit')) throw field.unsupported('load_in_8bit', 'false (weights of 4 bits are read)')
  if (!field.flag('load_in_4bit')) throw field.unsupported('load_in_4bit', 'true')
  if (field.has('bnb_4bit_quant_type') && !['nf4', 'fp4'].includes(field.text('bnb_4bit_quant_type'))) {
    throw field.unsupported('bnb_4bit_quant_type', '"nf4" or "fp4"')
  }
  return { format: 'bitsandbytes' }
}

function forEachGroup(field: Fields, check: (weights: Fields) => void): void {
  if (!field.has('config_groups')) return
  const groups = field.object('config_groups')
  for (const name of Object.keys(groups.json)) {
    if (!groups.has(name)) continue
    const group = groups.object(name)
    if (group.has('weights')) check(group.object('weights'))
  }
}

function requireBlocksOf16(field: Fields): void {
  if (field.has('group_size') && field.get('group_size') !== 16) throw field.unsupported('group_size', '16')
}
