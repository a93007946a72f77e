/** Small NVFP4 checkpoints as ModelOpt and compressed-tensors write them, made from the tensors of a `.dat`. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DatTensor, Qwen3Config, SafetensorsTensor } from 'qwen3-nvfp4'
import { toConfigJson, writeSafetensors } from 'qwen3-nvfp4'

export type Nvfp4Way = 'modelopt' | 'compressed-tensors'

/** What a runtime's own exporter writes beside the weights. */
export const quantizationConfigs: Record<Nvfp4Way, Record<string, unknown>> = {
  modelopt: {
    quant_method: 'modelopt',
    quant_algo: 'NVFP4',
    config_groups: { group_0: { weights: { num_bits: 4, type: 'float', group_size: 16 }, targets: ['Linear'] } },
    ignore: ['lm_head'],
    producer: { name: 'modelopt', version: '0.39.0' },
  },
  'compressed-tensors': {
    quant_method: 'compressed-tensors',
    format: 'nvfp4-pack-quantized',
    quantization_status: 'compressed',
    config_groups: {
      group_0: {
        targets: ['Linear'],
        weights: { num_bits: 4, type: 'float', strategy: 'tensor_group', group_size: 16, symmetric: true },
        input_activations: null,
      },
    },
    ignore: ['lm_head'],
  },
}

const dtypes = { 0: 'uint8', 5: 'float16', 6: 'float32', 15: 'bfloat16', 101: 'float8_e4m3fn' } as const

/** The tensors of a way: codes, scales and `scale_2` (or its reciprocal) under that way's names. */
export function nvfp4Tensors(way: Nvfp4Way, dat: ReadonlyMap<string, DatTensor>): Map<string, SafetensorsTensor> {
  const tensors = new Map<string, SafetensorsTensor>()
  for (const [key, { elementType, shape, data }] of dat) {
    const dtype = dtypes[elementType as keyof typeof dtypes]
    const stem = key.replace(/(\.weight)?\.(qdata|scale|scale_2)$/, '')
    if (key.endsWith('.qdata')) {
      tensors.set(way === 'modelopt' ? `${stem}.weight` : `${stem}.weight_packed`, { dtype, shape, data })
    } else if (key.endsWith('.scale')) {
      tensors.set(`${stem}.weight_scale`, { dtype, shape, data })
    } else if (key.endsWith('.scale_2')) {
      const scale = (data as Float32Array)[0]!
      if (way === 'modelopt') tensors.set(`${stem}.weight_scale_2`, { dtype, shape: [], data })
      else tensors.set(`${stem}.weight_global_scale`, { dtype, shape: [1], data: Float32Array.of(1 / scale) })
    } else {
      tensors.set(key, { dtype, shape, data })
    }
  }
  return tensors
}

export async function writeDirectory(
  folder: string,
  tensors: ReadonlyMap<string, SafetensorsTensor>,
  config: Qwen3Config,
  quantization?: Record<string, unknown>,
): Promise<string> {
  mkdirSync(folder, { recursive: true })
  await writeSafetensors(join(folder, 'model.safetensors'), tensors, { metadata: { format: 'pt' } })
  const json = { ...toConfigJson(config), ...(quantization && { quantization_config: quantization }) }
  writeFileSync(join(folder, 'config.json'), JSON.stringify(json))
  return folder
}

const magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]

/** E4M3 by its definition: 4 bits of exponent with bias 7, 3 of mantissa. */
function e4m3(byte: number): number {
  const exponent = (byte >> 3) & 15
  const fraction = (byte & 7) / 8
  return exponent === 0 ? fraction * 2 ** -6 : (1 + fraction) * 2 ** (exponent - 7)
}

/** The values of a packed weight by the formats' definitions, written without the library: `divisor` is the reciprocal. */
export function decodeNvfp4(
  codes: Uint8Array,
  scales: Uint8Array,
  cols: number,
  global: { factor: number } | { divisor: number },
): Float32Array {
  const values = new Float32Array(codes.length * 2)
  for (let i = 0; i < values.length; i++) {
    const nibble = i % 2 === 0 ? codes[i >> 1]! & 15 : codes[i >> 1]! >> 4
    const row = Math.floor(i / cols)
    const scale = e4m3(scales[row * (cols / 16) + Math.floor((i % cols) / 16)]!)
    const code = (nibble & 8 ? -1 : 1) * magnitudes[nibble & 7]!
    values[i] = 'factor' in global ? code * scale * global.factor : (code * scale) / global.divisor
  }
  return values
}
