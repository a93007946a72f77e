import { resolve } from 'node:path'
import type { CheckpointLayout, ParameterSource } from '../../types/checkpoint'
import type { Qwen3Config } from '../../types/config'
import type { LongOperationOptions, TensorEntry } from '../../types/format'
import { checkOneOf, checkPath } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { writeFileAtomic } from '../format/atomic-file'
import { DatWriter } from '../format/dat-writer'
import { checkLongOptions, type TensorReader } from '../format/tensor-reader'
import { configCandidates } from './checkpoint'
import { exists, openTensorFile } from './checkpoint-files'
import { readQwen3Config, toConfigJson } from './config'
import { FoldedResiduals, type FoldedTensor } from './folded-residuals'
import type { PlannedEntry } from './save-entries'
import { planEntries, readPlanned, type SavedResidual, type SavedScales, type SavePolicy } from './save-plan'
import { StoredParts } from './stored-parts'

export interface SaveDatOptions extends LongOperationOptions {
  /**
   * Levels of the NVFP4 scales. 'as-loaded' writes what the model has: the prior one-level layout stays exactly that.
   * 'one-level' refuses a tensor with a global scale; 'two-level' writes one for every tensor. Default: 'as-loaded'.
   */
  scales?: SavedScales
  /**
   * The NVFP4 residuals of training with 'nvfp4+residual'. 'keep' writes them beside the codes, exactly; one level has no
   * place for them. 'fold' quantises codes and residual anew as one tensor and reports what that loses, a tensor at a
   * time; 'drop' writes the codes alone. Default: 'keep'.
   */
  residual?: SavedResidual
}

export interface SaveDatResult {
  bytes: number
  configPath: string
  /** With `residual: 'fold'`: every tensor that was quantised anew. */
  folded: FoldedTensor[]
}

export interface SavedModel {
  config: Qwen3Config
  /** The layout of the file that the model came from; absent: the default one. */
  layout?: CheckpointLayout
}

/**
 * Writes every parameter as a `.dat`, atomically, and the configuration beside it: as `config.json` where none is, or as
 * `<name>.config.json` where another one is. Without changes a loaded `.dat` is written byte for byte as it was.
 */
export async function saveDat(
  source: ParameterSource,
  path: string | URL,
  { config, layout = { entries: [] } }: SavedModel,
  options: SaveDatOptions = {},
): Promise<SaveDatResult> {
  const target = resolve(checkPath('path', path))
  const { signal, onProgress } = checkLongOptions(options)
  const policy: SavePolicy = {
    scales: checkOneOf('scales', options.scales ?? 'as-loaded', ['as-loaded', 'one-level', 'two-level']),
    residual: checkOneOf('residual', options.residual ?? 'keep', ['keep', 'fold', 'drop']),
  }

  const stored = new StoredParts(source)
  const plan = await planEntries(stored, layout, policy)
  const totalBytes = plan.reduce((sum, { bytes }) => sum + bytes, 0)
  const folded = new FoldedResiduals(source)
  await using passed = new PassedThrough()
  await using writer = await DatWriter.create(target, { entries: plan.length, signal })
  const payloadOf = (entry: PlannedEntry) => (entry.form ? readPlanned(stored, entry, folded) : passed.stream(entry))
  let doneBytes = 0
  let next = plan[0] && payloadOf(plan[0])
  for (const [i, { key, elementType, shape }] of plan.entries()) {
    const counted = count(next!, (bytes) => onProgress?.({ doneBytes: (doneBytes += bytes), totalBytes }))
    next = plan[i + 1] && payloadOf(plan[i + 1]!) // reading begins while this entry is being written
    await writer.write(key, elementType, shape, counted)
  }
  const { bytes } = await writer.finish()
  return { bytes, configPath: await writeConfig(target, config), folded: folded.tensors }
}

async function* count(chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, onBytes: (bytes: number) => void) {
  for await (const chunk of chunks) {
    yield chunk
    onBytes(chunk.length)
  }
}

/** A configuration that describes the model already is left as it is; only `<name>.config.json` is ever replaced. */
export async function writeConfig(dat: string, config: Qwen3Config): Promise<string> {
  const [own, common] = configCandidates(dat)
  const ownExists = await exists(own)
  const commonExists = await exists(common)
  const present = ownExists ? own : commonExists ? common : undefined
  if (present && (await describesModel(present, config))) return present
  const path = present ? own : common
  await writeFileAtomic(path, new TextEncoder().encode(`${JSON.stringify(toConfigJson(config), null, 2)}\n`))
  return path
}

/** Whether a config.json says what `config` does. */
export async function describesModel(path: string, config: Qwen3Config): Promise<boolean> {
  const present = await readQwen3Config(path).catch(() => undefined)
  if (!present) return false
  // An untied head is in the file, which has the last word; a tied model needs a configuration that says so.
  const comparable = config.tieWordEmbeddings ? present : { ...present, tieWordEmbeddings: false }
  return JSON.stringify(toConfigJson(comparable)) === JSON.stringify(toConfigJson(config))
}

/** Tensors that the model does not use, read again from where they came. */
class PassedThrough implements AsyncDisposable {
  readonly #readers = new Map<string, TensorReader<TensorEntry>>()

  async *stream({ key, file, shape, bytes }: PlannedEntry): AsyncGenerator<Uint8Array> {
    const reader = this.#readers.get(file!) ?? (await openTensorFile(file!))
    this.#readers.set(file!, reader)
    const entry = reader.has(key) ? reader.entry(key) : undefined
    if (!entry || entry.bytes !== bytes || entry.shape.join() !== shape.join()) {
      const message = `${file} no longer has the tensor ${key} [${shape.join(', ')}] that is to be kept`
      throw new Qwen3Nvfp4Error('SAVE_LAYOUT_MISMATCH', message, { file, key })
    }
    yield* reader.stream(key)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const reader of this.#readers.values()) await reader.close()
  }
}
