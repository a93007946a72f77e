import { dirname, join, parse, resolve } from 'node:path'
import type { Checkpoint, CheckpointFormat, CheckpointWarning } from '../../types/checkpoint'
import type { Qwen3Config } from '../../types/config'
import type { Nibbles } from '../../types/tensor'
import { checkBoolean, checkOneOf, checkOptions, checkPath, checkSignal } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { bnb4Nibbles } from '../format/bnb4'
import { isBnb4 } from './bnb4'
import { readBnb4State, type Bnb4State } from './bnb4-state'
import { CheckpointFiles, exists } from './checkpoint-files'
import {
  hasOwnHead,
  listNames,
  matchParameters,
  refuseUnused,
  toLayout,
  toSources,
  type FoundParts,
  type IndexedEntry,
} from './checkpoint-match'
import { parseQwen3Config, readQwen3Config, toConfigJson } from './config'
import { splitFused } from './fused-entries'
import { configOfGguf } from './gguf-config'
import { splitNvfp4 } from './gguf-names'
import { parameterSpecs } from './parameter-specs'
import { readQuantization, type Quantization } from './quantization-config'
import { formatOfTensors, tensorNames } from './tensor-names'

export interface OpenCheckpointOptions {
  /** The configuration, when there is no config.json. */
  config?: Qwen3Config
  /**
   * Folder of config.json. Default: beside the file, `<name>.config.json` before `config.json`. A GGUF has its own in it.
   */
  modelDir?: string | URL
  /** As in LoadOptions. */
  strict?: boolean
  /** As in LoadOptions. */
  nibbles?: Nibbles
  signal?: AbortSignal
}

/**
 * Reads the index of a `.dat`, of a GGUF or of a Hugging Face directory and checks it against the configuration. Payloads stay
 * where they are: the core reads them by offset.
 */
export async function openCheckpoint(path: string | URL, options?: OpenCheckpointOptions): Promise<Checkpoint> {
  const { config: given, modelDir, strict, nibbles, signal } = checkOptions(options)
  const file = resolve(checkPath('path', path))
  if (strict !== undefined) checkBoolean('strict', strict)
  checkOneOf('nibbles', nibbles ?? bnb4Nibbles, ['high-first', 'low-first'])
  checkSignal(signal)
  await using files = await CheckpointFiles.open(file, signal)
  const folder = modelDir && checkPath('modelDir', modelDir)
  const declared = given ? checkConfig(given) : await findConfig(files, folder)
  const { config, format, entries, quantization } = await interpret(files, declared, folder)

  const { found, ignored, superseded, ...survey } = matchParameters(config, format, entries, files.paths)
  refuseUnused(survey.unused, strict, files.paths)
  const unused = [...survey.unused, ...superseded]
  const globalScales = new Map<string, number>()
  for (const [name, { globalScale }] of found) {
    if (globalScale) globalScales.set(name, await readGlobalScale(files, globalScale, tensorNames[format].isReciprocal))
  }
  const bnb4 = await readBnb4States(files, config, found, nibbles)
  return {
    format,
    config,
    files: files.paths,
    sources: toSources(found, globalScales, bnb4),
    layout: toLayout(entries, found, new Set(unused), files.paths, bnb4, files.isDat),
    warnings: warningsOf(files, ignored, unused, quantization),
  }
}

/** Of every bitsandbytes weight. */
export async function readBnb4States(
  files: CheckpointFiles,
  config: Qwen3Config,
  found: ReadonlyMap<string, FoundParts>,
  nibbles?: Nibbles,
): Promise<Map<string, Bnb4State>> {
  const states = new Map<string, Bnb4State>()
  for (const spec of parameterSpecs(config)) {
    const parts = found.get(spec.name)!
    if (isBnb4(parts)) states.set(spec.name, await readBnb4State(files, spec, parts, nibbles))
  }
  return states
}

/**
 * What kind of checkpoint the files are under a configuration. A .dat or GGUF decides by its own tensors whether it is tied;
 * Hugging Face files may repeat the embedding as a head, in whatever form, and there the configuration rules.
 */
export async function interpret(files: CheckpointFiles, declared: Qwen3Config, modelDir: string | undefined) {
  const tied = declared.tieWordEmbeddings && !(files.kind !== 'safetensors' && hasOwnHead(files.entries))
  const config = { ...declared, tieWordEmbeddings: tied }
  if (files.isDat) return { config, format: 'dat', entries: files.entries, quantization: undefined } as const
  if (files.kind === 'gguf') {
    return { config, format: 'gguf', entries: splitNvfp4(files.entries), quantization: undefined } as const
  }
  const quantization = await readQuantization(modelDir ?? dirname(files.paths[0]!))
  const used = files.entries.filter(({ key }) => !tied || !/^lm_head\./.test(key))
  return { config, format: formatOf(files, quantization), entries: splitFused(config, used), quantization }
}

/** The tensors say how they are stored; a configuration that says something else belongs to other files. */
function formatOf(files: CheckpointFiles, declared: Quantization | undefined): CheckpointFormat {
  const format = formatOfTensors(files.entries)
  if (format === 'hf' || !declared || declared.format === format) return format
  const file = files.paths[0]!
  const message = `${file} has the tensors of ${format}, but its configuration says ${declared.format}`
  throw new Qwen3Nvfp4Error('CHECKPOINT_BAD_INDEX', message, { file })
}

function warningsOf(
  files: CheckpointFiles,
  ignored: readonly IndexedEntry[],
  unused: readonly IndexedEntry[],
  quantization: Quantization | undefined,
): CheckpointWarning[] {
  const warnings: CheckpointWarning[] = []
  const add = (code: CheckpointWarning['code'], file: string, tensors: string[], message: string) =>
    warnings.push({ code, message: `${file}: ${message}`, file, tensors })
  for (const [code, entries, what] of [
    ['IGNORED_TENSORS', ignored, 'are ignored: activations, keys and values are not quantised'],
    ['UNUSED_TENSORS', unused, 'are not used by the model'],
  ] as const) {
    const tensors = entries.map(({ key }) => key)
    if (entries[0]) add(code, files.paths[entries[0].file]!, tensors, `${listNames(tensors)} ${what}`)
  }
  if (quantization?.kvCache) {
    const message = `keys and values were quantised to ${quantization.kvCache} where it was made; here they are not`
    add('QUANTIZED_CACHE', files.paths[0]!, [], message)
  }
  return warnings
}

/** The places where the configuration of a `.dat` is looked for, in order. */
export function configCandidates(dat: string): [string, string] {
  const { dir, name } = parse(dat)
  return [join(dir, `${name}.config.json`), join(dir, 'config.json')]
}

/** The configuration of a checkpoint from where it is looked for. */
export async function findConfig(files: CheckpointFiles, modelDir: string | undefined): Promise<Qwen3Config> {
  const first = files.paths[0]!
  if (files.kind === 'gguf') return configOfGguf(files.metadata, files.entries, first)
  const candidates = modelDir
    ? [join(modelDir, 'config.json')]
    : files.isDat
      ? configCandidates(first)
      : [join(dirname(first), 'config.json')]
  for (const candidate of candidates) {
    if (await exists(candidate)) return readQwen3Config(candidate)
  }
  const message = `no configuration for ${first}: looked for ${candidates.join(' and ')}; pass modelDir or config`
  throw new Qwen3Nvfp4Error('CONFIG_NOT_FOUND', message, { file: first })
}

/** A configuration made by hand goes through the same checks as one from a file. */
export function checkConfig(config: Qwen3Config): Qwen3Config {
  return parseQwen3Config(toConfigJson(checkOptions(config, 'config')), 'config')
}

/** `isReciprocal`: the file has what values are divided by. */
async function readGlobalScale(files: CheckpointFiles, entry: IndexedEntry, isReciprocal: boolean): Promise<number> {
  const bytes = await files.read(entry)
  const stored = new DataView(bytes.buffer, bytes.byteOffset).getFloat32(0, true)
  const scale = isReciprocal ? Math.fround(1 / stored) : stored
  if (scale > 0 && Number.isFinite(scale)) return scale
  const file = files.paths[entry.file]
  const message = `${file}: Expected a positive finite number for ${entry.key} but received ${stored}`
  throw new Qwen3Nvfp4Error('CHECKPOINT_BAD_SCALE', message, { file, key: entry.key, offset: entry.offset })
}
