import { readFile, stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import type { GgufValue, TensorEntry } from '../../types/format'
import { describe } from '../check'
import { ioError, Qwen3Nvfp4Error, throwIfAborted } from '../errors'
import { DatReader } from '../format/dat-reader'
import { GgufReader } from '../format/gguf'
import { SafetensorsReader } from '../format/safetensors'
import type { TensorReader } from '../format/tensor-reader'
import type { IndexedEntry } from './checkpoint-match'

export type FileKind = 'dat' | 'gguf' | 'safetensors'

/** What a file is, by its name: a path without another known ending is a `.dat`. */
export function kindOf(path: string): FileKind {
  return path.endsWith('.safetensors') ? 'safetensors' : path.endsWith('.gguf') ? 'gguf' : 'dat'
}

/** Open readers over the files of one checkpoint, and their entries in order. */
export class CheckpointFiles implements AsyncDisposable {
  readonly entries: IndexedEntry[] = []
  readonly paths: string[] = []
  readonly #readers: TensorReader<TensorEntry>[] = []

  private constructor(readonly kind: FileKind) {}

  /** A .dat, a GGUF, a safetensors file, or a folder with model.safetensors or its index. */
  static async open(path: string, signal?: AbortSignal): Promise<CheckpointFiles> {
    const { paths, weightMap } = await findFiles(resolve(path))
    const files = new CheckpointFiles(kindOf(paths[0]!))
    try {
      for (const each of paths) {
        throwIfAborted(signal)
        files.#add(each, await openTensorFile(each, signal))
      }
      if (weightMap) files.#checkWeightMap(weightMap)
      return files
    } catch (error) {
      await files.close()
      throw error
    }
  }

  get isDat(): boolean {
    return this.kind === 'dat'
  }

  /** Of a GGUF. */
  get metadata(): ReadonlyMap<string, GgufValue> {
    return (this.#readers[0] as GgufReader).metadata
  }

  async read({ file, key, storedAs = key, offset, bytes }: IndexedEntry): Promise<Uint8Array> {
    const reader = this.#readers[file]!
    const begin = offset - reader.entry(storedAs).offset
    return (await reader.readBytes(storedAs)).subarray(begin, begin + bytes)
  }

  stream({ file, key }: { file: number; key: string }): AsyncIterable<Uint8Array> {
    return this.#readers[file]!.stream(key)
  }

  /** Bytes of a whole file. */
  size(file: number): number {
    return this.#readers[file]!.size
  }

  async close(): Promise<void> {
    for (const reader of this.#readers) await reader.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #add(path: string, reader: TensorReader<TensorEntry>): void {
    const file = this.paths.push(path) - 1
    this.#readers.push(reader)
    for (const entry of reader.entries) this.entries.push({ ...entry, file })
  }

  #checkWeightMap(weightMap: ReadonlyMap<string, string>): void {
    const keys = new Set<string>()
    for (const { key, file } of this.entries) {
      const path = this.paths[file]!
      if (keys.has(key)) throw badIndex(path, `tensor ${key} is in two files`)
      if (weightMap.get(key) !== basename(path)) {
        throw badIndex(path, `holds ${key}, which the index puts into ${weightMap.get(key) ?? 'no file'}`)
      }
      keys.add(key)
    }
    const absent = [...weightMap.keys()].find((key) => !keys.has(key))
    if (absent !== undefined) throw badIndex(this.paths[0]!, `the index names ${absent}, which no file has`)
  }
}

/** A file of whatever kind. */
export function openTensorFile(path: string, signal?: AbortSignal): Promise<TensorReader<TensorEntry>> {
  const kind = kindOf(path)
  if (kind === 'safetensors') return SafetensorsReader.open(path)
  return kind === 'gguf' ? GgufReader.open(path, { signal }) : DatReader.open(path, { signal })
}

interface Found {
  paths: string[]
  weightMap?: Map<string, string>
}

async function findFiles(path: string): Promise<Found> {
  let isFolder: boolean
  try {
    isFolder = (await stat(path)).isDirectory()
  } catch (cause) {
    throw ioError('open', path, cause)
  }
  if (!isFolder) return { paths: [path] }
  const single = join(path, 'model.safetensors')
  if (await exists(single)) return { paths: [single] }
  const index = join(path, 'model.safetensors.index.json')
  if (await exists(index)) {
    const weightMap = await readWeightMap(index)
    const names = [...new Set(weightMap.values())].sort()
    return { paths: names.map((name) => join(dirname(index), name)), weightMap }
  }
  const message = `${path} has no model.safetensors and no model.safetensors.index.json; pass a .dat or a .gguf by its own path`
  throw new Qwen3Nvfp4Error('CHECKPOINT_NOT_FOUND', message, { file: path })
}

async function readWeightMap(path: string): Promise<Map<string, string>> {
  let map: unknown
  try {
    map = (JSON.parse(await readFile(path, 'utf8')) as { weight_map?: unknown } | null)?.weight_map
  } catch (cause) {
    throw new Qwen3Nvfp4Error('CHECKPOINT_BAD_INDEX', `${path}: cannot be read as JSON`, { cause, file: path })
  }
  if (typeof map !== 'object' || map === null || Object.keys(map).length === 0)
    throw badIndex(path, 'has no weight_map')
  for (const [key, name] of Object.entries(map)) {
    // A file of the same folder: the index must not reach elsewhere on the disk.
    if (typeof name !== 'string' || name !== basename(name) || !name.endsWith('.safetensors') || name.includes('\0')) {
      throw badIndex(path, `weight_map puts ${describe(key)} into ${describe(name)}, which is no safetensors file name`)
    }
  }
  return new Map(Object.entries(map as Record<string, string>))
}

function badIndex(path: string, message: string): Qwen3Nvfp4Error {
  return new Qwen3Nvfp4Error('CHECKPOINT_BAD_INDEX', `${path}: ${message}`, { file: path })
}

export async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  )
}
