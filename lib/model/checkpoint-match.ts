import type { Bnb4Part, Checkpoint, CheckpointFormat, LayoutEntry, ParameterPart } from '../../types/checkpoint'
import type { Qwen3Config } from '../../types/config'
import type { DTypeName, TensorEntry } from '../../types/format'
import type { NativeBnb4Source, NativeFileRange, NativeTensorSource } from '../../types/native'
import { Qwen3Nvfp4Error } from '../errors'
import { findElementType } from '../format/element-types'
import { findBnb4, isBnb4, missingOfBnb4, problemsOfBnb4 } from './bnb4'
import { layoutOfBnb4, type Bnb4State } from './bnb4-state'
import { kindOf } from './checkpoint-files'
import { parameterSpecs, type ParameterSpec } from './parameter-specs'
import { ignoredSuffix, refusedSuffix, tensorNames } from './tensor-names'

/** An entry and the number of its file. */
export interface IndexedEntry extends TensorEntry {
  file: number
  /** The key in the file, of an entry that is only a part of one there. */
  storedAs?: string
}

/** What the file has of a parameter. */
export type FoundParts = Partial<Record<ParameterPart, IndexedEntry>>

/** Names listed in an error before it says how many more there are. */
const listed = 20

/** Of the parts of a bitsandbytes weight bnb4.ts knows types and shapes. */
type PlainPart = Exclude<ParameterPart, Bnb4Part>

/** Element types that each part may have in a file, and what they are to the core. Ids 0 and 1 are raw E4M3 bits. */
type PartTypes = Partial<Record<DTypeName, NativeFileRange['dtype']>>
const codeTypes: PartTypes = { uint8: 'u8', int8: 'u8', float4_e2m1fn_x2: 'u8', nvfp4: 'u8' }
const scaleTypes: PartTypes = {
  float8_e4m3fn: 'e4m3',
  uint8: 'e4m3',
  int8: 'e4m3',
  float16: 'f16',
  float32: 'f32',
  nvfp4: 'e4m3',
}
const partTypes: Record<PlainPart, PartTypes> = {
  values: { float32: 'f32', float16: 'f16', bfloat16: 'bf16', q8_0: 'f32' },
  codes: codeTypes,
  scales: scaleTypes,
  globalScale: { float32: 'f32' },
  residualCodes: codeTypes,
  residualScales: scaleTypes,
}

/** The types of which a GGUF has blocks. */
const isBlocks = (dtype: DTypeName): dtype is 'nvfp4' | 'q8_0' => dtype === 'nvfp4' || dtype === 'q8_0'

/** A `.dat` or GGUF with a head of its own is an untied model, in any spelling. */
export function hasOwnHead(entries: readonly { key: string }[]): boolean {
  const names = new Set(['lm_head.weight', 'lm_head.weight.qdata', 'lm_head.qdata', 'output.weight'])
  return entries.some(({ key }) => names.has(key))
}

/** What the files have of a configuration's parameters, and what is wrong with it. */
export interface ParameterSurvey {
  found: Map<string, FoundParts>
  /** Needed, and in no file. */
  missing: string[]
  /** Scales of activations and caches. */
  ignored: IndexedEntry[]
  /** bitsandbytes weights of a `.dat` that has the same parameter in NVFP4, which wins. */
  superseded: IndexedEntry[]
  unused: IndexedEntry[]
  /** Shapes and types that do not fit, and tensors that would change what weights mean. */
  problems: Qwen3Nvfp4Error[]
}

/** Finds every parameter of `config` among the entries, by name. Reads nothing. */
export function surveyParameters(
  config: Qwen3Config,
  format: CheckpointFormat,
  entries: readonly IndexedEntry[],
  files: readonly string[],
): ParameterSurvey {
  const byKey = new Map(entries.map((entry) => [entry.key, entry]))
  const found = new Map<string, FoundParts>()
  const missing: string[] = []
  const superseded: IndexedEntry[] = []
  const problems: (Qwen3Nvfp4Error | undefined)[] = []
  for (const spec of parameterSpecs(config)) {
    const parts = findParts(spec.name, format, byKey)
    found.set(spec.name, parts)
    for (const entry of Object.values(parts)) byKey.delete(entry.key)
    if (isBnb4(parts)) {
      missing.push(...missingOfBnb4(spec.name, parts, format === 'dat'))
      problems.push(...problemsOfBnb4(spec, parts, files))
      continue
    }
    missing.push(...missingParts(spec.name, format, parts))
    for (const [part, entry] of Object.entries(parts)) problems.push(checkPart(spec, part as PlainPart, entry, files))
    if (format !== 'dat' || !parts.codes) continue
    for (const entry of Object.values(findBnb4(spec.name, byKey) ?? {})) {
      superseded.push(entry)
      byKey.delete(entry.key)
    }
  }
  const left = [...byKey.values()]
  problems.push(unknownMeaning(left, format, files))
  const isIgnored = ({ key }: IndexedEntry) => format !== 'dat' && ignoredSuffix.test(key)
  return {
    found,
    missing,
    ignored: left.filter(isIgnored),
    superseded,
    unused: left.filter((entry) => !isIgnored(entry)),
    problems: problems.filter((problem) => problem !== undefined),
  }
}

/** A survey without problems; shapes and types must fit, and nothing may be missing. */
export function matchParameters(
  config: Qwen3Config,
  format: CheckpointFormat,
  entries: readonly IndexedEntry[],
  files: readonly string[],
): ParameterSurvey {
  const survey = surveyParameters(config, format, entries, files)
  const { problems, missing } = survey
  if (problems[0]) throw withCount(problems[0], problems.length - 1)
  if (missing.length > 0) {
    const message = `${files[0]} lacks ${listNames(missing)} that its configuration needs`
    throw new Qwen3Nvfp4Error('CHECKPOINT_MISSING_TENSORS', message, { file: files[0], key: missing[0] })
  }
  return survey
}

/** A configuration of another model contradicts many shapes: the first says which, the number how far off it is. */
function withCount(problem: Qwen3Nvfp4Error, others: number): Qwen3Nvfp4Error {
  if (others === 0) return problem
  const { code, file, key } = problem
  const message = `${problem.message}; inspect lists it and ${others} more`
  return new Qwen3Nvfp4Error(code, message, { file, key })
}

/** Codes need scales; a residual needs both of its parts, and the global scale that its own is an eighth of. */
function missingParts(name: string, format: CheckpointFormat, parts: FoundParts): string[] {
  const { suffixes, isTwoLevel, stems, values } = tensorNames[format]
  if (Object.keys(parts).length === 0) return [values(name)]
  if (parts.values) return []
  const stem = stems(name).find((each) => parts.codes?.key === each + suffixes.codes) ?? stems(name)[0]!
  const residual = ['residualCodes', 'residualScales'] as const
  const hasResidual = residual.some((part) => parts[part])
  const needed = [
    'codes',
    'scales',
    ...(isTwoLevel || hasResidual ? (['globalScale'] as const) : []),
    ...(hasResidual ? residual : []),
  ] as const
  return needed.filter((part) => !parts[part]).map((part) => stem + suffixes[part])
}

function unknownMeaning(
  entries: readonly IndexedEntry[],
  format: CheckpointFormat,
  files: readonly string[],
): Qwen3Nvfp4Error | undefined {
  // In a GGUF the factor of a dense matrix too.
  const isRefused = (key: string) => refusedSuffix.test(key) || (format === 'gguf' && key.endsWith('.scale'))
  const refused = entries.filter(({ key }) => isRefused(key))
  const first = refused[0]
  if (!first) return undefined
  const names = listNames(refused.map(({ key }) => key))
  const message = `${files[first.file]} has ${names}, without which its weights mean something else and which are not supported`
  return new Qwen3Nvfp4Error('CHECKPOINT_UNSUPPORTED_TENSORS', message, { file: files[first.file], key: first.key })
}

/**
 * What belongs to a layer, the embedding, the last norm or the head: a bias, a layer that the configuration does not have. A model
 * without it computes something else. The angles of rope follow from the configuration.
 */
const insideModel =
  /^(model\.)?(layers\.\d+|embed_tokens|norm|lm_head)\.(?!.*rotary_emb\.)|^(blk\.\d+|token_embd|output_norm|output)\./

/** Refuses unused tensors: all of them, none, or, undecided, those without which the model would be another. */
export function refuseUnused(
  unused: readonly IndexedEntry[],
  strict: boolean | undefined,
  files: readonly string[],
): void {
  const refused = strict === undefined ? unused.filter(({ key }) => insideModel.test(key)) : strict ? unused : []
  const first = refused[0]
  if (!first) return
  const names = listNames(refused.map(({ key }) => key))
  const message = `${files[first.file]} has ${names} that the model does not use; load with strict: false to keep such tensors as they are`
  throw new Qwen3Nvfp4Error('CHECKPOINT_UNEXPECTED_TENSORS', message, { file: files[first.file], key: first.key })
}

/** The core's sources, with the global scales and the states that the caller has read. */
export function toSources(
  found: ReadonlyMap<string, FoundParts>,
  globalScales: ReadonlyMap<string, number>,
  bnb4: ReadonlyMap<string, Bnb4State>,
): NativeTensorSource[] {
  return [...found].map(([parameter, parts]) => {
    const state = bnb4.get(parameter)
    if (state) return { parameter, bnb4: toBnb4Source(parts, state) }
    if (!parts.codes) return { parameter, values: toRange('values', parts.values!) }
    const globalScale = globalScales.get(parameter)
    return {
      parameter,
      codes: toRange('codes', parts.codes),
      scales: toRange('scales', parts.scales!),
      globalScale: globalScale ?? 1,
      twoLevel: globalScale !== undefined,
      ...(parts.residualCodes && {
        residualCodes: toRange('residualCodes', parts.residualCodes),
        residualScales: toRange('residualScales', parts.residualScales!),
      }),
    }
  })
}

function toBnb4Source(parts: FoundParts, { nested, data: _, ...state }: Bnb4State): NativeBnb4Source {
  const range = ({ file, offset, bytes }: IndexedEntry, dtype: NativeFileRange['dtype']) => ({
    file,
    offset,
    bytes,
    dtype,
  })
  return {
    ...state,
    codes: range(parts.codes!, 'u8'),
    absmax: range(parts.absmax!, nested ? 'u8' : 'f32'),
    ...(nested && { nested: { ...nested, absmax: range(parts.nestedAbsmax!, 'f32') } }),
  }
}

/** Remembers a `.dat` entry by entry; of other files only what the model does not use, which has no default place. */
export function toLayout(
  entries: readonly IndexedEntry[],
  found: ReadonlyMap<string, FoundParts>,
  unused: ReadonlySet<IndexedEntry>,
  files: readonly string[],
  bnb4: ReadonlyMap<string, Bnb4State>,
  remembersParameters: boolean,
): Checkpoint['layout'] {
  const owners = new Map<IndexedEntry, { parameter: string; part: ParameterPart }>()
  for (const [parameter, parts] of found) {
    for (const [part, entry] of Object.entries(parts)) owners.set(entry, { parameter, part: part as ParameterPart })
  }
  const layout: LayoutEntry[] = []
  for (const entry of entries) {
    const { key, dtype, shape, file } = entry
    const owner = owners.get(entry)
    const elementType = findElementType(dtype)?.id
    if (owner && remembersParameters) {
      const state = bnb4.get(owner.parameter)
      layout.push({ key, elementType: elementType!, shape, ...owner, ...(state && layoutOfBnb4(state, owner.part)) })
    }
    if (!unused.has(entry)) continue
    if (elementType === undefined) throw unsupportedType(entry, files, 'a tensor that a .dat can keep')
    layout.push({ key, elementType, shape, file: files[file]! })
  }
  return { entries: layout }
}

/** NVFP4 before bitsandbytes and raw values, which are then left over. */
function findParts(name: string, format: CheckpointFormat, byKey: ReadonlyMap<string, IndexedEntry>): FoundParts {
  const { stems, suffixes, values: valuesName } = tensorNames[format]
  const values = byKey.get(valuesName(name))
  for (const stem of stems(name)) {
    const parts: FoundParts = {}
    for (const [part, suffix] of Object.entries(suffixes)) {
      const entry = byKey.get(stem + suffix)
      if (entry) parts[part as ParameterPart] = entry
    }
    // ModelOpt's codes have the name of dense values; a .dat and a GGUF are packed where they have codes.
    const packed =
      format === 'dat' || format === 'gguf'
        ? parts.codes
        : parts.scales || parts.globalScale || parts.codes?.key !== name
    if (packed && Object.keys(parts).length > 0) return parts
  }
  const bnb4 = format === 'dat' || format === 'bitsandbytes' ? findBnb4(name, byKey) : undefined
  if (bnb4) return bnb4
  if (values && format === 'modelopt' && values.dtype === 'uint8') return { codes: values }
  return values ? { values } : {}
}

function checkPart(
  spec: ParameterSpec,
  part: PlainPart,
  entry: IndexedEntry,
  files: readonly string[],
): Qwen3Nvfp4Error | undefined {
  const { rows, cols, isVector } = spec
  const packs = !isVector && cols % 16 === 0
  const codes = packs ? [rows, isBlocks(entry.dtype) ? cols : cols / 2] : undefined
  const scales = packs ? [rows, isBlocks(entry.dtype) ? cols : cols / 16] : undefined
  const shapes: Record<PlainPart, number[] | undefined> = {
    values: isVector ? [cols] : [rows, cols],
    codes,
    scales,
    globalScale: entry.shape.length === 1 ? [1] : [],
    residualCodes: codes,
    residualScales: scales,
  }
  if (!partTypes[part][entry.dtype]) return unsupportedType(entry, files, typesOf(part, files[entry.file]!))
  const expected = shapes[part]
  if (expected && expected.join() === entry.shape.join()) return undefined
  const form = isVector ? `f32[${cols}]` : `[${rows}, ${cols}]`
  const of = part === 'values' ? 'by the configuration' : `of parameter ${form}`
  const needs = expected ? `[${expected.join(', ')}] ${of}` : `no NVFP4 for parameter ${form}`
  const { key, storedAs = key } = entry
  const message = `${files[entry.file]}: Expected ${needs} for ${storedAs} but received [${entry.shape.join(', ')}]`
  return new Qwen3Nvfp4Error('CHECKPOINT_SHAPE_MISMATCH', message, { file: files[entry.file], key: storedAs })
}

/** In words. Blocks are in GGUF files alone, where NVFP4 may stand for values too. */
function typesOf(part: PlainPart, file: string): string {
  const types = Object.keys(partTypes[part]) as DTypeName[]
  if (kindOf(file) !== 'gguf') return types.filter((type) => !isBlocks(type)).join(' | ')
  return (part === 'values' ? [...types, 'nvfp4'] : types).join(' | ')
}

function toRange(part: PlainPart, { file, offset, bytes, dtype }: IndexedEntry): NativeFileRange {
  return { file, offset, bytes, dtype: partTypes[part][dtype]!, ...(isBlocks(dtype) && { blocks: dtype }) }
}

function unsupportedType(entry: IndexedEntry, files: readonly string[], expected: string): Qwen3Nvfp4Error {
  const file = files[entry.file]
  const message = `${file}: Expected ${expected} for ${entry.key} but received ${entry.dtype}`
  return new Qwen3Nvfp4Error('CHECKPOINT_UNSUPPORTED_TYPE', message, { file, key: entry.key })
}

/** At most twenty names, none of them endless. */
export function listNames(names: readonly string[]): string {
  const shown = names.slice(0, listed).map((name) => (name.length > 200 ? `${name.slice(0, 197)}...` : name))
  const more = names.length > listed ? ` and ${names.length - listed} more` : ''
  return `${names.length} tensor${names.length === 1 ? '' : 's'} (${shown.join(', ')}${more})`
}
