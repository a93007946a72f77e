import { dirname, join, parse, resolve } from 'node:path'
import type { Checkpoint } from '../../types/checkpoint'
import type { Qwen3Config } from '../../types/config'
import { checkBoolean, checkOptions, checkPath, checkSignal } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { CheckpointFiles, exists } from './checkpoint-files'
import { hasOwnHead, matchParameters, refuseUnused, toLayout, toSources, type IndexedEntry } from './checkpoint-match'
import { parseQwen3Config, readQwen3Config, toConfigJson } from './config'

export interface OpenCheckpointOptions {
  /** The configuration, when there is no config.json. */
  config?: Qwen3Config
  /** Folder of config.json. Default: beside the file, `<name>.config.json` before `config.json`. */
  modelDir?: string | URL
  /** Refuse tensors that the model does not use; false keeps them for saveDat. Default: true. */
  strict?: boolean
  signal?: AbortSignal
}

/**
 * Reads the index of a `.dat` or of a Hugging Face directory and checks it against the configuration. Payloads stay
 * where they are: the core reads them by offset.
 */
export async function openCheckpoint(path: string | URL, options?: OpenCheckpointOptions): Promise<Checkpoint> {
  const { config: given, modelDir, strict = true, signal } = checkOptions(options)
  const file = resolve(checkPath('path', path))
  checkBoolean('strict', strict)
  checkSignal(signal)
  await using files = await CheckpointFiles.open(file, signal)
  const declared = given ? checkConfig(given) : await findConfig(files, modelDir && checkPath('modelDir', modelDir))

  // A .dat decides by its own tensors. Hugging Face files may repeat the embedding as a head; the config rules there.
  const ownHead = hasOwnHead(files.entries)
  const tied = files.isDat ? declared.tieWordEmbeddings && !ownHead : declared.tieWordEmbeddings
  const config = { ...declared, tieWordEmbeddings: tied }
  const entries = files.isDat || !tied ? files.entries : files.entries.filter(({ key }) => key !== 'lm_head.weight')

  const { found, unused } = matchParameters(config, entries, files.paths)
  if (strict) refuseUnused(unused, files.paths)
  const globalScales = new Map<string, number>()
  for (const [name, { globalScale }] of found) {
    if (globalScale) globalScales.set(name, await readGlobalScale(files, globalScale))
  }
  return {
    config,
    files: files.paths,
    sources: toSources(found, globalScales),
    layout: toLayout(entries, found, new Set(unused), files.paths, files.isDat),
  }
}

/** The places where the configuration of a `.dat` is looked for, in order. */
export function configCandidates(dat: string): [string, string] {
  const { dir, name } = parse(dat)
  return [join(dir, `${name}.config.json`), join(dir, 'config.json')]
}

async function findConfig(files: CheckpointFiles, modelDir: string | undefined): Promise<Qwen3Config> {
  const first = files.paths[0]!
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

async function readGlobalScale(files: CheckpointFiles, entry: IndexedEntry): Promise<number> {
  const bytes = await files.read(entry)
  const scale = new DataView(bytes.buffer, bytes.byteOffset).getFloat32(0, true)
  if (scale > 0 && Number.isFinite(scale)) return scale
  const file = files.paths[entry.file]
  const message = `${file}: Expected a positive finite number for ${entry.key} but received ${scale}`
  throw new Qwen3Nvfp4Error('CHECKPOINT_BAD_SCALE', message, { file, key: entry.key, offset: entry.offset })
}
