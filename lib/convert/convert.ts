import { basename, dirname, join } from 'node:path'
import type { Checkpoint, CheckpointWarning } from '../../types/checkpoint'
import type { ConvertedTensor, ConvertOptions, ConvertProgress, ConvertResult } from '../../types/convert'
import { throwIfAborted } from '../errors'
import { listNames } from '../model/checkpoint-match'
import { openCheckpoint } from '../model/checkpoint'
import { writeConfig } from '../model/save-dat'
import { emitWarnings } from '../model/warnings'
import { openDevice } from '../native-call'
import { copyCompanions, writeDirectoryFiles } from './directory-files'
import { checkConvert, type CheckedConvert } from './options'
import { fusedGroup, namesOf, planTensors, type PlannedTensor } from './plan'
import { GlobalScales, needsScan } from './global-scales'
import { ggufMetadata } from './gguf-metadata'
import { RangeQueue, sourceBytes, type ConversionRun } from './range-queue'
import { FileSink, ShardSink, type TensorSink } from './sinks'
import { Staging } from './staging'
import { TensorConversion } from './tensor-conversion'
import { verifyWritten } from './verify-written'

/** Share of small block scales in a one-level tensor from which on a warning is due. */
const maxSubnormal = 0.01

/**
 * Writes a checkpoint in another format, tensor by tensor: memory stays at a few million elements and the block scales
 * of one tensor. The target appears when all of it is written and was read back; else nothing stays.
 *
 * @example
 * const { tensors } = await convert('Qwen3-4B', 'model.dat', { scaleRule: 'four-over-six' })
 */
export async function convert(
  source: string | URL,
  target: string | URL,
  options?: ConvertOptions,
): Promise<ConvertResult> {
  const checked = checkConvert(source, target, options)
  const checkpoint = await openCheckpoint(checked.source, checked.open)
  const warn = (warnings: readonly CheckpointWarning[]) => emitWarnings(warnings, checked.onWarning)
  warn(checkpoint.warnings)
  const tensors = planTensors(checkpoint, checked.policy)
  warn(unequalScales(checkpoint, tensors, checked))
  const bytes = tensors.flatMap(({ parts }) => parts).reduce((sum, part) => sum + part.bytes, 0)
  throwIfAborted(checked.signal)

  const { format } = checked.policy
  await using staging = await Staging.create(checked.target, format !== 'dat' && format !== 'gguf', bytes)
  const progress = new ProgressCount(checked, tensors, bytes)
  await using sink = await openSink(staging, checkpoint, tensors, checked, warn)
  const reports = await writeTensors(checkpoint, tensors, sink, checked, progress)
  await sink.finish()
  for (const file of checked.verify ? sink.files : []) {
    await verifyWritten(file, checked.signal, (key, count) => progress.add('verify', key, count))
  }
  throwIfAborted(checked.signal)
  warn(subnormalScales(reports, checked))
  const files =
    format === 'gguf'
      ? [await staging.commit('model.gguf')]
      : format === 'dat'
        ? await placeDat(staging, checkpoint, checked)
        : await placeDirectory(staging, checkpoint, tensors, sink, checked)
  return { format, files, bytes, tensors: reports }
}

async function openSink(
  staging: Staging,
  checkpoint: Checkpoint,
  tensors: readonly PlannedTensor[],
  checked: CheckedConvert,
  warn: (warnings: readonly CheckpointWarning[]) => void,
): Promise<TensorSink> {
  const { policy, target, shardBytes, signal } = checked
  if (policy.format === 'dat') return FileSink.dat(join(staging.folder, 'model.dat'), tensors, signal)
  if (policy.format !== 'gguf') return new ShardSink(staging.folder, tensors, shardBytes, signal)
  const modelDir = modelDirOf(checkpoint, checked)
  const { values, withoutTokenizer } = await ggufMetadata(target, checkpoint.config, policy.weights, modelDir)
  if (withoutTokenizer !== undefined) {
    const message = `${target}: was written without a tokenizer: ${withoutTokenizer}; pass modelDir`
    warn([{ code: 'NO_TOKENIZER', message, file: target, tensors: [] }])
  }
  return FileSink.gguf(join(staging.folder, 'model.gguf'), values, tensors, signal)
}

async function writeTensors(
  checkpoint: Checkpoint,
  tensors: readonly PlannedTensor[],
  sink: TensorSink,
  { policy, scaleRule, signal, threads }: CheckedConvert,
  progress: ProgressCount,
): Promise<ConvertedTensor[]> {
  const run: ConversionRun = {
    device: openDevice({ threads }),
    files: checkpoint.files,
    scaleRule,
    isReciprocal: namesOf(policy.format).isReciprocal,
    signal,
    onRead: (tensor, count) => progress.add('convert', tensor, count),
  }
  const globalScales = new GlobalScales(run, tensors)
  const ranges = new RangeQueue(run, tensors, globalScales)
  const reports: ConvertedTensor[] = []
  for (const tensor of tensors) {
    const conversion = new TensorConversion(run, ranges, tensor, await globalScales.of(tensor))
    for (const part of tensor.parts) await sink.write(part, conversion.read(part))
    reports.push(conversion.report())
  }
  return reports
}

/** The folder that has the tokenizer and the configuration of the source; a GGUF has its own. */
function modelDirOf({ format, files }: Checkpoint, { open }: CheckedConvert): string {
  return (open.modelDir as string | undefined) ?? (format === 'gguf' ? files[0]! : dirname(files[0]!))
}

async function placeDat(staging: Staging, checkpoint: Checkpoint, checked: CheckedConvert): Promise<string[]> {
  const path = await staging.commit('model.dat')
  const configPath = await writeConfig(path, checkpoint.config)
  const copied = await copyCompanions(modelDirOf(checkpoint, checked), dirname(path), false)
  return [path, configPath, ...copied.map((name) => join(dirname(path), name))]
}

async function placeDirectory(
  staging: Staging,
  checkpoint: Checkpoint,
  tensors: readonly PlannedTensor[],
  sink: TensorSink,
  checked: CheckedConvert,
): Promise<string[]> {
  const { config } = checkpoint
  const modelDir = modelDirOf(checkpoint, checked)
  const names = await writeDirectoryFiles(staging.folder, modelDir, config, checked.policy.format, tensors, sink.files)
  const folder = await staging.commit()
  return [...sink.files.map(({ path }) => basename(path)), ...names].map((name) => join(folder, name))
}

/** Runtimes that stack q, k and v keep the largest of their global scales; only scales that are kept can differ. */
function unequalScales(
  { files }: Checkpoint,
  tensors: readonly PlannedTensor[],
  { policy }: CheckedConvert,
): CheckpointWarning[] {
  if (policy.format !== 'modelopt' && policy.format !== 'compressed-tensors') return []
  const groups = new Map<string, Set<number | undefined>>()
  for (const { name, to, globalScale } of tensors) {
    if (to !== 'nvfp4') continue
    groups.set(fusedGroup(name), (groups.get(fusedGroup(name)) ?? new Set()).add(globalScale))
  }
  const names = [...groups].filter(([, scales]) => scales.size > 1).map(([name]) => name)
  if (names.length === 0) return []
  const what = 'have several global scales; runtimes that fuse these matrices keep one and lose accuracy'
  const message = `${files[0]}: ${listNames(names)} ${what}`
  return [{ code: 'UNEQUAL_GLOBAL_SCALES', message, file: files[0]!, tensors: names }]
}

function subnormalScales(reports: readonly ConvertedTensor[], { policy, target }: CheckedConvert): CheckpointWarning[] {
  if (policy.twoLevel) return []
  const tensors = reports.filter(({ subnormalScales }) => subnormalScales > maxSubnormal).map(({ name }) => name)
  if (tensors.length === 0) return []
  const what = "have more than 1 % of their block scales below 2^-6, where they lose bits; write scales: 'two-level'"
  return [{ code: 'SUBNORMAL_SCALES', message: `${target}: ${listNames(tensors)} ${what}`, file: target, tensors }]
}

/** Counts what is read of the source, twice where a largest magnitude is looked for, and of what was written. */
class ProgressCount {
  readonly #report: ConvertOptions['onProgress']
  readonly #totalBytes: number
  #doneBytes = 0

  constructor({ onProgress, verify }: CheckedConvert, tensors: readonly PlannedTensor[], written: number) {
    this.#report = onProgress
    const read = tensors.reduce((sum, tensor) => sum + sourceBytes(tensor.source) * (needsScan(tensor) ? 2 : 1), 0)
    this.#totalBytes = read + (verify ? written : 0)
  }

  add(phase: ConvertProgress['phase'], tensor: string, bytes: number): void {
    this.#doneBytes += bytes
    this.#report?.({
      phase,
      tensor,
      doneBytes: Math.min(Math.round(this.#doneBytes), this.#totalBytes),
      totalBytes: this.#totalBytes,
    })
  }
}
