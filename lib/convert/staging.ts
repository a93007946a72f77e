import { randomBytes } from 'node:crypto'
import { mkdir, readdir, rename, rm, statfs } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { ioError, Qwen3Nvfp4Error } from '../errors'
import { resolveTarget, syncFolder } from '../format/atomic-file'

/** What folders, small files and the blocks of the file system take beside the payloads. */
const reserveBytes = 32 << 20

/**
 * A folder beside the target in which everything is written and verified before any of it gets its name. Without
 * `commit` it vanishes with all that is in it.
 */
export class Staging implements AsyncDisposable {
  readonly folder: string
  readonly #target: string

  private constructor(folder: string, target: string) {
    this.folder = folder
    this.#target = target
  }

  /** Refuses a directory that has anything in it, and a disk without room for `bytes`, before anything is written. */
  static async create(path: string, isDirectory: boolean, bytes: number): Promise<Staging> {
    const target = isDirectory ? path : await resolveTarget(path)
    if (isDirectory) await refuseFull(target)
    const parent = dirname(target)
    const folder = join(parent, `.${basename(target)}.${process.pid}.${randomBytes(4).toString('hex')}.tmp`)
    try {
      const { bavail, bsize } = await statfs(parent)
      if (bavail * bsize < bytes + reserveBytes) throw notEnough(path, bytes, bavail * bsize)
      await mkdir(folder)
    } catch (cause) {
      throw cause instanceof Qwen3Nvfp4Error ? cause : ioError('write', path, cause)
    }
    return new Staging(folder, target)
  }

  /** Gives the whole folder its name, or with `file` that file of it. */
  async commit(file?: string): Promise<string> {
    try {
      await rename(file === undefined ? this.folder : join(this.folder, file), this.#target)
    } catch (cause) {
      throw ioError('write', this.#target, cause)
    }
    await syncFolder(dirname(this.#target))
    return this.#target
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.folder, { recursive: true, force: true }).catch(() => {})
  }
}

async function refuseFull(folder: string): Promise<void> {
  let names: string[]
  try {
    names = await readdir(folder)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return
    throw ioError('write', folder, cause)
  }
  if (names.length === 0) return
  const message = `${folder} has ${names.length} file${names.length === 1 ? '' : 's'} in it; a checkpoint is written into a new or an empty folder`
  throw new Qwen3Nvfp4Error('SAVE_TARGET_EXISTS', message, { file: folder })
}

function notEnough(path: string, bytes: number, free: number): Qwen3Nvfp4Error {
  const megabytes = (count: number) => `${Math.ceil(count / 1e6)} MB`
  const message = `${path} needs ${megabytes(bytes + reserveBytes)} and the disk has ${megabytes(free)} free; free some space or choose another folder`
  return new Qwen3Nvfp4Error('NOT_ENOUGH_DISK', message, { file: path })
}
