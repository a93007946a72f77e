/** What a conversion makes of every parameter, decided before anything is read. */
import type { Bnb4Part, Checkpoint, ParameterPart } from '../../types/checkpoint'
import type { ConvertOptions, DenseStorage, ExportFormat, FileStorage, SourceStorage } from '../../types/convert'
import type { DTypeName } from '../../types/format'
import type { NativeTensorSource } from '../../types/native'
import { Qwen3Nvfp4Error } from '../errors'
import { findGgmlType, ggmlBytes } from '../format/gguf-types'
import { listNames } from '../model/checkpoint-match'
import { parameterSpecs, type ParameterSpec } from '../model/parameter-specs'
import { tensorNames, type TensorNames } from '../model/tensor-names'

type WrittenPart = Exclude<ParameterPart, Bnb4Part>

/** One tensor of a file to be written. */
export interface PlannedPart {
  part: WrittenPart
  key: string
  dtype: DTypeName
  shape: number[]
  bytes: number
}

export interface PlannedTensor extends ParameterSpec {
  source: NativeTensorSource
  from: SourceStorage
  to: FileStorage
  /** Whether codes and scales stay as they are. */
  copies: boolean
  /** Of NVFP4; absent while it is to follow from the largest magnitude in `group`. */
  globalScale?: number
  /** Tensors of a group have one global scale. */
  group: string
  parts: PlannedPart[]
}

/** The options that decide about the form of tensors, with their defaults filled in. */
export interface ConvertPolicy {
  format: ExportFormat
  weights: FileStorage
  twoLevel: boolean
  requantize: boolean
  dense: readonly (string | RegExp)[]
  denseType: DenseStorage | 'q8_0' | 'as-stored'
  embedding: 'as-stored' | 'nvfp4'
  head: 'own' | 'tied'
}

const ofDtype = { f32: 'fp32', f16: 'fp16', bf16: 'bf16' } as const
const dtypes = { fp32: 'float32', fp16: 'float16', bf16: 'bfloat16' } as const
const elementBytes = { float32: 4, float16: 2, bfloat16: 2, uint8: 1, float8_e4m3fn: 1 } as const

export function namesOf(format: ExportFormat): TensorNames {
  return tensorNames[format in tensorNames ? (format as keyof typeof tensorNames) : 'hf']
}

export function policyOf(format: ExportFormat, options: ConvertOptions): ConvertPolicy {
  const isDat = format === 'dat'
  const dense = format.startsWith('hf-') ? (format.slice(3) as DenseStorage) : undefined
  const weights = options.weights ?? dense ?? 'nvfp4'
  const twoLevel = isDat ? options.scales === 'two-level' : true
  const oneLevelDat = isDat && weights === 'nvfp4' && !twoLevel
  const besideNvfp4 = format === 'gguf' || (isDat && twoLevel) ? 'as-stored' : isDat ? 'fp16' : 'bf16'
  const defaultDense = weights === 'nvfp4' ? besideNvfp4 : weights
  return {
    format,
    weights,
    twoLevel,
    requantize: options.requantize ?? false,
    dense: options.dense ?? [],
    denseType: options.denseType ?? defaultDense,
    embedding: (isDat && options.embedding) || 'as-stored',
    head: (isDat && options.head) || (oneLevelDat ? 'own' : 'tied'),
  }
}

/** Every tensor in the core's order. Error(SAVE_LAYOUT_MISMATCH) lists those that would have to be quantised anew. */
export function planTensors(checkpoint: Checkpoint, policy: ConvertPolicy): PlannedTensor[] {
  const { config, sources } = checkpoint
  const bySource = new Map(sources.map((source) => [source.parameter, source]))
  const specs = parameterSpecs(config)
  const embedding = specs[0]!
  if (config.tieWordEmbeddings && policy.head === 'own') specs.push({ ...embedding, name: 'lm_head.weight' })

  const refused: string[] = []
  const planned = specs.map((spec) => {
    const found = bySource.get(spec.name) ?? bySource.get(embedding.name)!
    // Errors and reports name what is written, not what it was read from.
    const source = { ...found, parameter: spec.name }
    const tensor = planTensor(spec, source, policy, spec.name === embedding.name)
    const changes = source.codes && tensor.to === 'nvfp4' && !tensor.copies
    if (changes && !policy.requantize) refused.push(spec.name)
    return tensor
  })
  if (refused.length > 0) {
    const message =
      `${checkpoint.files[0]} has ${listNames(refused)} with a global scale or a residual that ${policy.format} ` +
      `${policy.twoLevel ? '' : 'of one level '}cannot hold; ${policy.format === 'dat' ? "write scales: 'two-level', or " : ''}` +
      'quantise them anew with requantize: true, which reports the error'
    throw new Qwen3Nvfp4Error('SAVE_LAYOUT_MISMATCH', message, { file: checkpoint.files[0], key: refused[0] })
  }
  return planned
}

function planTensor(
  spec: ParameterSpec,
  source: NativeTensorSource,
  policy: ConvertPolicy,
  isEmbedding: boolean,
): PlannedTensor {
  const from = formOf(source)
  const to = isPacked(spec, from, policy, isEmbedding) ? 'nvfp4' : denseStorage(spec, from, policy)
  const { globalScale = 1, residualCodes } = source
  const keepsResidual = !residualCodes || (policy.format === 'dat' && policy.twoLevel)
  const copies = to === 'nvfp4' && from === 'nvfp4' && keepsResidual && (policy.twoLevel || globalScale === 1)
  const known = copies ? globalScale : policy.twoLevel ? undefined : 1
  const group = policy.format === 'dat' || policy.format === 'gguf' ? spec.name : fusedGroup(spec.name)
  const tensor = { ...spec, source, from, to, copies, globalScale: known, group } as const
  if (policy.format === 'gguf') return { ...tensor, parts: ggufPartsOf(spec, to, !copies || source.twoLevel === true) }
  return { ...tensor, parts: partsOf(spec, to, policy, copies && residualCodes !== undefined) }
}

function formOf({ codes, bnb4, values }: NativeTensorSource): SourceStorage {
  if (codes) return 'nvfp4'
  if (bnb4) return 'bnb4'
  return values!.blocks === 'q8_0' ? 'q8_0' : ofDtype[values!.dtype as keyof typeof ofDtype]
}

/**
 * Runtimes of ModelOpt and compressed-tensors files keep embedding and head dense; those of GGUF look tokens up in dense
 * embeddings, and its blocks have 64 columns.
 */
function isPacked(spec: ParameterSpec, from: SourceStorage, policy: ConvertPolicy, isEmbedding: boolean): boolean {
  if (policy.weights !== 'nvfp4' || spec.isVector || spec.cols % 16 !== 0) return false
  const module = spec.name.replace(/\.weight$/, '')
  if (policy.dense.some((pattern) => matches(pattern, module))) return false
  if (policy.format === 'gguf' && spec.cols % 64 !== 0) return false
  const keepsHead = policy.format === 'gguf' && from === 'nvfp4'
  if (policy.format !== 'dat') return !isEmbedding && (module !== 'lm_head' || keepsHead)
  return !isEmbedding || from === 'nvfp4' || policy.embedding === 'nvfp4'
}

/** In a GGUF norms are fp32, as its runtimes want them; elsewhere what was Q8_0 is, and what bitsandbytes stored. */
function denseStorage(spec: ParameterSpec, from: SourceStorage, { denseType, format }: ConvertPolicy): FileStorage {
  if (format === 'gguf' && spec.isVector) return 'fp32'
  const stored = from === 'nvfp4' ? 'bf16' : from === 'bnb4' ? 'fp32' : from
  const wanted = denseType !== 'as-stored' ? denseType : stored
  return wanted === 'q8_0' && (format !== 'gguf' || spec.cols % 32 !== 0) ? 'fp32' : wanted
}

/** A string with `*` is the whole name of a module, without it a part of one. */
function matches(pattern: string | RegExp, module: string): boolean {
  if (typeof pattern !== 'string') return module.search(pattern) >= 0
  if (!pattern.includes('*')) return module.includes(pattern)
  const escaped = pattern.split('*').map((text) => text.replace(/[.+?^${}()|[\]\\]/g, '\\$&'))
  return new RegExp(`^${escaped.join('.*')}$`).test(module)
}

/** vLLM stacks these and keeps one global scale of them. */
export function fusedGroup(parameter: string): string {
  return parameter
    .replace(/\.(q_proj|k_proj|v_proj)\.weight$/, '.qkv')
    .replace(/\.(gate_proj|up_proj)\.weight$/, '.gate_up')
}

/** NVFP4 is one tensor of blocks, and a factor where it has a global scale. */
function ggufPartsOf({ name, rows, cols, isVector }: ParameterSpec, to: FileStorage, hasScale: boolean): PlannedPart[] {
  const { values, stems, suffixes } = tensorNames.gguf
  const dtype: DTypeName = to === 'nvfp4' || to === 'q8_0' ? to : dtypes[to]
  const shape = isVector ? [cols] : [rows, cols]
  const bytes = ggmlBytes(shape, findGgmlType(dtype)!)!
  const part = to === 'nvfp4' ? 'codes' : 'values'
  const scale: PlannedPart = {
    part: 'globalScale',
    key: stems(name)[0]! + suffixes.globalScale,
    dtype: 'float32',
    shape: [1],
    bytes: 4,
  }
  return [{ part, key: values(name), dtype, shape, bytes }, ...(to === 'nvfp4' && hasScale ? [scale] : [])]
}

function partsOf(spec: ParameterSpec, to: FileStorage, policy: ConvertPolicy, withResidual: boolean): PlannedPart[] {
  const { name, rows, cols, isVector } = spec
  const part = (part: WrittenPart, key: string, dtype: keyof typeof elementBytes, shape: number[]): PlannedPart => {
    return { part, key, dtype, shape, bytes: shape.reduce((a, b) => a * b, elementBytes[dtype]) }
  }
  if (to !== 'nvfp4') return [part('values', name, dtypes[to as DenseStorage], isVector ? [cols] : [rows, cols])]
  const { stems, suffixes } = namesOf(policy.format)
  const stem = stems(name)[0]!
  const codes = [rows, cols / 2]
  const scales = [rows, cols / 16]
  const scalar = policy.format === 'compressed-tensors' ? [1] : []
  return [
    part('codes', stem + suffixes.codes, 'uint8', codes),
    part('scales', stem + suffixes.scales, 'float8_e4m3fn', scales),
    ...(policy.twoLevel ? [part('globalScale', stem + suffixes.globalScale, 'float32', scalar)] : []),
    ...(withResidual
      ? [
          part('residualCodes', stem + suffixes.residualCodes, 'uint8', codes),
          part('residualScales', stem + suffixes.residualScales, 'float8_e4m3fn', scales),
        ]
      : []),
  ]
}
