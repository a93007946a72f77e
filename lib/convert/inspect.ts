import { resolve } from 'node:path'
import type { CheckpointInspection, InspectedTensor, InspectOptions, ScaleStatistics } from '../../types/convert'
import type { Qwen3Config } from '../../types/config'
import type { DTypeName } from '../../types/format'
import { checkBoolean, checkOptions, checkPath, checkSignal } from '../check'
import { Qwen3Nvfp4Error, throwIfAborted } from '../errors'
import { e4m3ToF32 } from '../format/floats'
import { checkConfig, findConfig, interpret, readBnb4States } from '../model/checkpoint'
import { CheckpointFiles } from '../model/checkpoint-files'
import { surveyParameters, type IndexedEntry, type ParameterSurvey } from '../model/checkpoint-match'
import { parameterSpecs } from '../model/parameter-specs'
import { formatOfTensors } from '../model/tensor-names'

/**
 * Says what is in a `.dat`, a GGUF, a safetensors file or a Hugging Face directory, and whether it is the model that its
 * configuration describes. Reads the index alone, and of bitsandbytes weights the tables and states, some hundred bytes each;
 * with `scales: true` also every NVFP4 block scale.
 *
 * @example
 * const { tensors, missing, problems } = await inspect('model.dat')
 */
export async function inspect(path: string | URL, options?: InspectOptions): Promise<CheckpointInspection> {
  const given = checkOptions(options, 'options', ['scales', 'config', 'modelDir', 'signal'])
  const scales = checkBoolean('scales', given.scales ?? false)
  const modelDir = given.modelDir && checkPath('modelDir', given.modelDir)
  const signal = checkSignal(given.signal)
  await using files = await CheckpointFiles.open(resolve(checkPath('path', path)), signal)
  const { config, format, survey, problems } = await surveyFiles(files, given.config, modelDir)
  const tensors = describeTensors(files, survey)
  if (scales) await addStatistics(files, tensors, signal)
  const count = (file: number) => tensors.filter((tensor) => tensor.file === file).length
  const sizes = files.paths.map((path, i) => ({ path, bytes: files.size(i), tensors: count(i) }))
  return {
    format,
    files: sizes,
    bytes: sizes.reduce((sum, { bytes }) => sum + bytes, 0),
    tensors,
    dtypes: byDtype(tensors),
    ...(config && { config, parameterCount: parametersOf(config) }),
    missing: survey?.missing ?? [],
    unexpected: survey?.unused.map(({ key }) => key) ?? [],
    ignored: survey ? [...survey.ignored, ...survey.superseded].map(({ key }) => key) : [],
    problems,
  }
}

interface Surveyed {
  config?: Qwen3Config
  format: CheckpointInspection['format']
  survey?: ParameterSurvey
  problems: string[]
}

/** Without a configuration that can be used there are still tensors to show. */
async function surveyFiles(
  files: CheckpointFiles,
  given: Qwen3Config | undefined,
  modelDir: string | undefined,
): Promise<Surveyed> {
  try {
    const declared = given ? checkConfig(given) : await findConfig(files, modelDir)
    const { config, format, entries } = await interpret(files, declared, modelDir)
    const survey = surveyParameters(config, format, entries, files.paths)
    const problems = survey.problems.map(({ message }) => message)
    if (problems.length + survey.missing.length === 0) problems.push(...(await problemsOfStates(files, config, survey)))
    return { config, format, survey, problems }
  } catch (error) {
    if (!(error instanceof Qwen3Nvfp4Error)) throw error
    const format = files.kind === 'safetensors' ? formatOfTensors(files.entries) : files.kind
    return { format, problems: [error.message] }
  }
}

/** What is wrong with the table or state of a bitsandbytes weight: the first of them. */
async function problemsOfStates(files: CheckpointFiles, config: Qwen3Config, survey: ParameterSurvey) {
  try {
    await readBnb4States(files, config, survey.found)
    return []
  } catch (error) {
    if (!(error instanceof Qwen3Nvfp4Error)) throw error
    return [error.message]
  }
}

/** Entries of the files; a fused one is of the first parameter in it. */
function describeTensors(files: CheckpointFiles, survey: ParameterSurvey | undefined): InspectedTensor[] {
  const owners = new Map<string, Pick<InspectedTensor, 'parameter' | 'part'>>()
  const place = ({ file, key, storedAs = key }: IndexedEntry) => `${file} ${storedAs}`
  for (const [parameter, parts] of survey?.found ?? []) {
    for (const [part, entry] of Object.entries(parts)) {
      if (!owners.has(place(entry))) owners.set(place(entry), { parameter, part: part as InspectedTensor['part'] })
    }
  }
  return files.entries.map((entry) => {
    const { key, dtype, shape, bytes, file } = entry
    return { key, dtype, shape: [...shape], bytes, file, ...owners.get(place(entry)) }
  })
}

async function addStatistics(
  files: CheckpointFiles,
  tensors: InspectedTensor[],
  signal: AbortSignal | undefined,
): Promise<void> {
  for (const tensor of tensors) {
    const isScales = tensor.part === 'scales' || tensor.part === 'residualScales'
    // Blocks of a GGUF are 36 bytes, of which the first 4 are scales.
    const isBlocks = tensor.dtype === 'nvfp4' && tensor.part !== undefined
    if (!isBlocks && (!isScales || tensor.bytes !== tensor.shape.reduce((a, b) => a * b, 1))) continue
    throwIfAborted(signal)
    const counts = new Float64Array(256)
    let at = 0
    for await (const chunk of files.stream(tensor)) {
      for (const scale of chunk) if (!isBlocks || at++ % 36 < 4) counts[scale]!++
    }
    tensor.scales = statisticsOf(counts)
  }
}

/** 0x01 to 0x07 are the subnormal E4M3 numbers, 0x7F is NaN and 0x80 upwards negative. */
function statisticsOf(counts: Float64Array): ScaleStatistics {
  const sum = (begin: number, end: number) => counts.subarray(begin, end).reduce((a, b) => a + b, 0)
  const positive = Array.from({ length: 0x7e }, (_, i) => i + 1).filter((scale) => counts[scale]! > 0)
  return {
    blocks: sum(0, 256),
    smallest: e4m3ToF32(positive[0] ?? 0),
    largest: e4m3ToF32(positive.at(-1) ?? 0),
    zero: counts[0]!,
    subnormal: sum(1, 8),
    invalid: sum(0x7f, 256),
  }
}

function byDtype(tensors: readonly InspectedTensor[]): CheckpointInspection['dtypes'] {
  const rows = new Map<DTypeName, CheckpointInspection['dtypes'][number]>()
  for (const { dtype, bytes } of tensors) {
    const row = rows.get(dtype) ?? { dtype, tensors: 0, bytes: 0 }
    rows.set(dtype, { dtype, tensors: row.tensors + 1, bytes: row.bytes + bytes })
  }
  return [...rows.values()].sort((a, b) => b.bytes - a.bytes)
}

function parametersOf(config: Qwen3Config): number {
  return parameterSpecs(config).reduce((sum, { rows, cols }) => sum + rows * cols, 0)
}
