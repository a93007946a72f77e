import type { CheckpointFormat } from '../../types/checkpoint'
import { ggufModule } from './gguf-names'

type Nvfp4Part = 'codes' | 'scales' | 'globalScale' | 'residualCodes' | 'residualScales'

/** How the files of a format call the parts of a parameter `X.weight`. */
export interface TensorNames {
  /** Dense values: `X.weight` but for other names of X. */
  values(parameter: string): string
  /** What the suffixes follow: spellings in the order in which they are looked for; the first one is written. */
  stems(parameter: string): string[]
  /** Parts that a packed parameter may have, in the order in which they are written. */
  suffixes: Partial<Record<Nvfp4Part, string>>
  /** Whether a packed parameter always has a global scale. */
  isTwoLevel: boolean
  /** Whether the file has 1 / globalScale, which values are divided by. */
  isReciprocal: boolean
}

const same = (parameter: string) => parameter
const moduleOf = (parameter: string) => parameter.replace(/\.weight$/, '')

export const tensorNames: Record<CheckpointFormat, TensorNames> = {
  dat: {
    values: same,
    stems: (parameter) => [parameter, moduleOf(parameter)],
    suffixes: {
      codes: '.qdata',
      scales: '.scale',
      globalScale: '.scale_2',
      residualCodes: '.residual.qdata',
      residualScales: '.residual.scale',
    },
    isTwoLevel: false,
    isReciprocal: false,
  },
  hf: {
    values: same,
    stems: (parameter) => [moduleOf(parameter)],
    suffixes: {},
    isTwoLevel: false,
    isReciprocal: false,
  },
  modelopt: {
    values: same,
    stems: (parameter) => [moduleOf(parameter)],
    suffixes: { codes: '.weight', scales: '.weight_scale', globalScale: '.weight_scale_2' },
    isTwoLevel: true,
    isReciprocal: false,
  },
  'compressed-tensors': {
    values: same,
    stems: (parameter) => [moduleOf(parameter)],
    suffixes: { codes: '.weight_packed', scales: '.weight_scale', globalScale: '.weight_global_scale' },
    isTwoLevel: true,
    isReciprocal: true,
  },
  // Its packed weights are not told by suffixes alone (bnb4.ts), there and in a .dat.
  bitsandbytes: {
    values: same,
    stems: (parameter) => [parameter],
    suffixes: {},
    isTwoLevel: false,
    isReciprocal: false,
  },
  gguf: {
    values: (parameter) => `${ggufModule(moduleOf(parameter))}.weight`,
    stems: (parameter) => [ggufModule(moduleOf(parameter))],
    // Codes and scales are two views of one tensor (splitNvfp4).
    suffixes: { codes: '.weight.codes', scales: '.weight.scales', globalScale: '.scale' },
    isTwoLevel: false,
    isReciprocal: false,
  },
}

/** Scales of activations and of quantised keys and values: a model of weights is whole without them. */
export const ignoredSuffix = /\.(input_scale|input_global_scale|[qkv]_scale|output_scale)$/

/** Tensors that change what a weight means; what they stand for is not implemented. */
export const refusedSuffix =
  /\.(pre_quant_scale|weight_g_idx|weight_zero_point)$|\.quant_state\.bitsandbytes__(?!(nf4|fp4)$)/

/** Which way of 4 bits the names of safetensors files show. */
export function formatOfTensors(entries: readonly { key: string }[]): Exclude<CheckpointFormat, 'dat' | 'gguf'> {
  const keys = entries.map(({ key }) => key)
  if (keys.some((key) => /\.weight_(packed|global_scale)$/.test(key))) return 'compressed-tensors'
  if (keys.some((key) => /\.weight_scale(_2)?$/.test(key))) return 'modelopt'
  if (keys.some((key) => /\.(absmax|quant_map)$|\.quant_state\.bitsandbytes__/.test(key))) return 'bitsandbytes'
  return 'hf'
}
