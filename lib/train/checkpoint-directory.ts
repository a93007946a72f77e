import { randomBytes } from 'node:crypto'
import { mkdir, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { ioError, Qwen3Nvfp4Error } from '../errors'
import { syncFolder, writeFileAtomic } from '../format/atomic-file'
import { DirectoryLock } from './directory-lock'

/** The file that makes a folder a checkpoint: written last, it lists the others with their sizes. */
const manifestName = 'trainer.json'
const formatName = 'qwen3-nvfp4-training'
/** Grows when an older library could not continue from what is written. */
const formatVersion = 1

const stepFolder = /^step-(\d{8,})$/
const leftover = /^\.tmp-/

export interface SavedFile {
  name: string
  bytes: number
}

/** A checkpoint that is whole: every file of its manifest is there in its size. */
export interface SavedCheckpoint {
  path: string
  step: number
  /** Version of the library that wrote it. */
  library: string
  files: SavedFile[]
  /** What the trainer wrote. */
  state: unknown
}

interface Manifest extends Omit<SavedCheckpoint, 'path'> {
  format: string
  version: number
}

/** Folders `step-00000042`, each written beside its name and renamed, in a folder that one live process may write. */
export class CheckpointDirectory implements AsyncDisposable {
  readonly path: string
  readonly #library: string
  readonly #lock: DirectoryLock
  readonly #removals: Promise<void>[] = []

  private constructor(path: string, library: string, lock: DirectoryLock) {
    this.path = path
    this.#library = library
    this.#lock = lock
  }

  /** Makes the folder if need be, takes it (CHECKPOINT_DIR_BUSY), and removes what killed runs left half-written. */
  static async open(path: string, library: string): Promise<CheckpointDirectory> {
    const folder = resolve(path)
    await attempt('make', folder, () => mkdir(folder, { recursive: true }))
    const lock = await DirectoryLock.acquire(folder)
    const directory = new CheckpointDirectory(folder, library, lock)
    try {
      for (const name of await readdir(folder)) {
        if (leftover.test(name)) await rm(join(folder, name), { recursive: true, force: true })
      }
    } catch (cause) {
      await directory.close()
      throw ioError('clean', folder, cause)
    }
    return directory
  }

  /** Writes one checkpoint with the files that `fill` puts into a folder; resolves when it would survive a power cut. */
  async write(step: number, state: unknown, fill: (folder: string) => Promise<void>): Promise<SavedCheckpoint> {
    await this.#lock.require()
    await this.#finishRemovals()
    const path = join(this.path, `step-${String(step).padStart(8, '0')}`)
    const draft = join(this.path, `.tmp-${randomBytes(4).toString('hex')}`)
    try {
      await attempt('make', draft, () => mkdir(draft))
      await fill(draft)
      const files = await listFiles(draft)
      const saved = { step, library: this.#library, files, state }
      const manifest: Manifest = { format: formatName, version: formatVersion, ...saved }
      await writeFileAtomic(join(draft, manifestName), new TextEncoder().encode(`${JSON.stringify(manifest)}\n`))
      await syncFolder(draft)
      await this.#remove(path) // a damaged one: it was not found when this run began
      await attempt('write', path, () => rename(draft, path))
      await syncFolder(this.path)
      return { path, ...saved }
    } catch (error) {
      await rm(draft, { recursive: true, force: true })
      throw error
    }
  }

  /**
   * Removes all but the last `keep` checkpoints; each vanishes at once, whatever happens to the process. Their bytes are
   * freed meanwhile, which takes a quarter of the time of writing them: the next write waits for that, and the end.
   */
  async prune(keep: number): Promise<void> {
    for (const { path } of (await listSteps(this.path)).slice(0, -keep)) await this.#remove(path)
  }

  async #remove(path: string): Promise<void> {
    const aside = join(this.path, `.tmp-${randomBytes(4).toString('hex')}`)
    try {
      await rename(path, aside)
    } catch (error) {
      if (isMissing(error)) return
      throw ioError('remove', path, error)
    }
    const removal = attempt('remove', path, () => rm(aside, { recursive: true, force: true }))
    removal.catch(() => {}) // thrown where it is awaited
    this.#removals.push(removal)
  }

  async #finishRemovals(): Promise<void> {
    await Promise.all(this.#removals.splice(0))
  }

  async close(): Promise<void> {
    try {
      await this.#finishRemovals()
    } finally {
      await this.#lock.release()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

export interface FoundCheckpoint {
  checkpoint?: SavedCheckpoint
  /** Folders that are named as later checkpoints and are none: without a manifest, or with a file missing or cut short. */
  damaged: string[]
}

/** The checkpoint of a path: that folder itself, or the whole one of the highest step within it. */
export async function findCheckpoint(path: string): Promise<FoundCheckpoint> {
  const folder = resolve(path)
  const own = await readCheckpoint(folder)
  if (own) return { checkpoint: own, damaged: [] }
  const damaged: string[] = []
  for (const { path } of (await listSteps(folder)).reverse()) {
    const checkpoint = await readCheckpoint(path)
    if (checkpoint) return { checkpoint, damaged }
    damaged.push(path)
  }
  return { damaged }
}

/** Reads a manifest; another format version is refused with what is known of it. */
async function readCheckpoint(path: string): Promise<SavedCheckpoint | undefined> {
  const file = join(path, manifestName)
  let manifest: Manifest
  try {
    manifest = JSON.parse(await readFile(file, 'utf8')) as Manifest
  } catch (error) {
    if (error instanceof SyntaxError || isMissing(error)) return undefined
    throw ioError('read', file, error)
  }
  if (manifest?.format !== formatName) return undefined
  const { version, step, library, files, state } = manifest
  if (version !== formatVersion) {
    const message =
      `${path} was written by version ${library} in format ${version} of training checkpoints; ` +
      `this version reads format ${formatVersion}`
    throw new Qwen3Nvfp4Error('RESUME_MISMATCH', message, { file })
  }
  for (const { name, bytes } of files) {
    const found = await stat(join(path, name)).catch(() => undefined)
    if (found?.size !== bytes) return undefined
  }
  return { path, step, library, files, state }
}

/** Folders that are named as checkpoints, by rising step. */
async function listSteps(folder: string): Promise<{ path: string; step: number }[]> {
  let names: string[]
  try {
    names = await readdir(folder)
  } catch (error) {
    if (isMissing(error)) return []
    throw ioError('read', folder, error)
  }
  return names
    .map((name) => ({ path: join(folder, name), step: Number(stepFolder.exec(name)?.[1] ?? NaN) }))
    .filter(({ step }) => !Number.isNaN(step))
    .sort((a, b) => a.step - b.step)
}

async function listFiles(folder: string): Promise<SavedFile[]> {
  const names = await readdir(folder)
  return Promise.all(names.sort().map(async (name) => ({ name, bytes: (await stat(join(folder, name))).size })))
}

const isMissing = (error: unknown) => ['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')

async function attempt(doing: string, file: string, act: () => Promise<unknown>): Promise<void> {
  try {
    await act()
  } catch (cause) {
    throw ioError(doing, file, cause)
  }
}
