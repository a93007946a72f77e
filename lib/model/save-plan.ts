import type { CheckpointLayout, LayoutEntry, ParameterForm, ParameterPart, StoredPart } from '../../types/checkpoint'
import type { NativeFoldedResidual } from '../../types/native'
import { Qwen3Nvfp4Error } from '../errors'
import { findElementType } from '../format/element-types'
import { fromFloat32, toFloat32, type FloatType } from '../format/floats'
import type { FoldedResiduals } from './folded-residuals'
import { bnb4Entries, readBnb4Entry } from './save-bnb4'
import { entryBytes, type PlannedEntry, type Remembered } from './save-entries'
import { chunkBytes, type StoredParts } from './stored-parts'

export type SavedScales = 'as-loaded' | 'one-level' | 'two-level'
export type SavedResidual = 'keep' | 'fold' | 'drop'

export interface SavePolicy {
  scales: SavedScales
  residual: SavedResidual
}

const storageTypes = { fp32: 'float32', fp16: 'float16', bf16: 'bfloat16' } as const

/**
 * The entries of the file: those of the layout in its order, with its keys and element types as long as these hold the
 * present values exactly; then the parameters that the layout does not know, in the default form.
 */
export async function planEntries(
  stored: StoredParts,
  layout: CheckpointLayout,
  policy: SavePolicy,
): Promise<PlannedEntry[]> {
  const remembered = new Map<string, Map<ParameterPart, LayoutEntry>>()
  for (const entry of layout.entries) {
    if (entry.parameter === undefined) continue
    const parts = remembered.get(entry.parameter) ?? new Map<ParameterPart, LayoutEntry>()
    remembered.set(entry.parameter, parts.set(entry.part!, entry))
  }
  const wanted = new Map<string, PlannedEntry[]>()
  for (const form of stored.parameters) {
    const parts = remembered.get(form.name)
    // What bitsandbytes calls its codes has no place for those of another form.
    const fits = parts && parts.has('absmax') === (form.storage === 'bnb4')
    wanted.set(form.name, await parameterEntries(stored, form, fits ? parts : new Map(), policy))
  }

  const planned: PlannedEntry[] = []
  for (const entry of layout.entries) {
    if (entry.parameter === undefined) {
      planned.push({ ...entry, bytes: entryBytes(entry) })
      continue
    }
    const entries = wanted.get(entry.parameter) ?? []
    const parts = remembered.get(entry.parameter)!
    // The same parts stay where they were; another form takes the place of the first one.
    const unchanged = entries.length === parts.size && entries.every(({ part }) => parts.has(part!))
    if (unchanged) planned.push(entries.find(({ part }) => part === entry.part)!)
    else if (parts.values().next().value === entry) planned.push(...entries)
  }
  for (const { name } of stored.parameters) if (!remembered.has(name)) planned.push(...wanted.get(name)!)
  return planned
}

/** The payload of a planned parameter entry, of which reading has begun: from memory, or of what its residual folds to. */
export function readPlanned(
  stored: StoredParts,
  entry: PlannedEntry,
  folded: FoldedResiduals,
): AsyncIterable<Uint8Array> | Iterable<Uint8Array> {
  const { folds, part } = entry
  const form = entry.form!
  if (form.storage === 'bnb4') return readBnb4Entry(stored, entry)
  const isGlobal = part === 'globalScale'
  const written = findElementType(entry.elementType)!.dtype
  const present = isGlobal ? undefined : storedType(form, part!)
  const pieces = folds
    ? readFolded(folded.of(form.name, folds === 'two-level'), part!)
    : isGlobal
      ? [globalScaleBytes(form)]
      : stored.read(form, part as StoredPart)
  return present && isFloat(written) && written !== present ? convert(pieces, present, written) : pieces
}

async function* readFolded(folding: Promise<NativeFoldedResidual>, part: ParameterPart): AsyncGenerator<Uint8Array> {
  const folded = await folding
  if (part === 'globalScale') yield globalScaleBytes(folded)
  else yield* inChunks(part === 'codes' ? folded.codes : folded.scales)
}

async function* convert(
  pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  from: FloatType,
  to: Exclude<FloatType, 'float8_e4m3fn'>,
): AsyncGenerator<Uint8Array> {
  for await (const bytes of pieces) yield fromFloat32(to, toFloat32(from, bytes))
}

function globalScaleBytes({ globalScale }: { globalScale: number }): Uint8Array {
  return new Uint8Array(Float32Array.of(globalScale).buffer)
}

/** `values`, or codes, scales, the global scale of a two-level tensor, and the two parts of a residual that is kept. */
async function parameterEntries(
  stored: StoredParts,
  form: ParameterForm,
  remembered: Remembered,
  { scales, residual }: SavePolicy,
): Promise<PlannedEntry[]> {
  const { name, rows, cols, isVector, storage } = form
  if (storage === 'bnb4') return bnb4Entries(stored, form, remembered)
  const saved = storage === 'nvfp4' && form.residual ? residual : 'drop'
  const levels = saved === 'fold' ? foldedLevels(form, scales) : undefined
  const entry = (part: ParameterPart, key: string, elementType: number, shape: number[]): PlannedEntry => {
    const old = remembered.get(part)
    const planned = { key, elementType, shape, ...old, parameter: name, part, form, folds: levels }
    return { ...planned, bytes: entryBytes(planned) }
  }
  if (storage !== 'nvfp4') {
    const planned = entry('values', name, findElementType(storageTypes[storage])!.id, isVector ? [cols] : [rows, cols])
    if (await holdsExactly(stored, planned)) return [planned]
    const elementType = findElementType(storageTypes[storage])!.id
    return [{ ...planned, elementType, bytes: entryBytes({ ...planned, elementType }) }]
  }
  const stem = remembered.get('codes')?.key.replace(/\.qdata$/, '') ?? name
  const entries = [
    entry('codes', `${stem}.qdata`, 0, [rows, cols / 2]),
    entry('scales', `${stem}.scale`, 101, [rows, cols / 16]),
  ]
  const second = levels ? levels === 'two-level' : hasSecondLevel(form, scales)
  if (second) entries.push(entry('globalScale', `${stem}.scale_2`, 6, []))
  if (saved !== 'keep') return entries
  if (!second) {
    const message =
      `${name} has an NVFP4 residual, which the one-level layout cannot hold; save with scales: 'two-level', ` +
      "or with residual: 'fold' or 'drop'"
    throw new Qwen3Nvfp4Error('SAVE_LAYOUT_MISMATCH', message, { key: name })
  }
  entries.push(
    entry('residualCodes', `${stem}.residual.qdata`, 0, [rows, cols / 2]),
    entry('residualScales', `${stem}.residual.scale`, 101, [rows, cols / 16]),
  )
  return entries
}

/** Folding quantises anew, so one level can be had of any tensor. */
function foldedLevels({ twoLevel, globalScale }: ParameterForm, scales: SavedScales): 'one-level' | 'two-level' {
  if (scales !== 'as-loaded') return scales
  return twoLevel || globalScale !== 1 ? 'two-level' : 'one-level'
}

function hasSecondLevel({ name, twoLevel, globalScale }: ParameterForm, scales: SavedScales): boolean {
  if (scales === 'one-level' && globalScale !== 1) {
    const message =
      `${name} has a global scale of ${globalScale}, which the one-level layout cannot hold, ` +
      "and requantising would change its values; save with scales: 'as-loaded'"
    throw new Qwen3Nvfp4Error('SAVE_LAYOUT_MISMATCH', message, { key: name })
  }
  return scales === 'two-level' || (scales === 'as-loaded' && (twoLevel || globalScale !== 1))
}

/**
 * Whether every present value survives the element type of the file that was loaded: a file of fp16 norms that the
 * optimizer keeps in fp32 is written as fp16 again while nothing has changed, and as fp32 once fp16 would lose bits.
 */
async function holdsExactly(stored: StoredParts, entry: PlannedEntry): Promise<boolean> {
  const present = storedType(entry.form!, 'values')!
  const written = findElementType(entry.elementType)!.dtype
  if (written === present || written === 'float32') return true
  if (!isFloat(written)) return false
  for await (const bytes of stored.read(entry.form!, 'values')) {
    const values = toFloat32(present, bytes)
    const back = toFloat32(written, fromFloat32(written, values))
    if (values.some((value, i) => value !== back[i])) return false
  }
  return true
}

function* inChunks(bytes: Uint8Array): Generator<Uint8Array> {
  for (let offset = 0; offset < bytes.length; offset += chunkBytes) yield bytes.subarray(offset, offset + chunkBytes)
}

/** The type that a part has in memory; codes have none that converts, nor has anything of bitsandbytes. */
function storedType({ storage }: ParameterForm, part: ParameterPart): FloatType | undefined {
  if (part === 'codes' || part === 'residualCodes' || storage === 'bnb4') return undefined
  return storage === 'nvfp4' ? 'float8_e4m3fn' : storageTypes[storage]
}

function isFloat(dtype: string): dtype is Exclude<FloatType, 'float8_e4m3fn'> {
  return dtype === 'float32' || dtype === 'float16' || dtype === 'bfloat16'
}
