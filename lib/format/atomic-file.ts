import { randomBytes } from 'node:crypto'
import { open, realpath, rename, rm, stat, type FileHandle } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { ioError, Qwen3Nvfp4Error } from '../errors'

const bufferBytes = 1 << 20

/** Bytes after which the disk begins to write what it was given, so that the flush at the end has little left to do. */
const flushBytes = 64 << 20

/**
 * A file that appears whole or not at all: written under a temporary name in the same folder, flushed to the disk, then
 * renamed. A symbolic link keeps pointing where it did and its target is replaced.
 */
export class AtomicFile {
  readonly path: string
  readonly #temporary: string
  readonly #handle: FileHandle
  // Headers are a few bytes each: gathered here, so that a file of many small entries is not as many system calls.
  readonly #buffer = new Uint8Array(bufferBytes)
  #buffered = 0
  #position = 0
  #open = true
  #unflushed = 0
  #flushing: Promise<void> | undefined
  #failure: { cause: unknown } | undefined

  private constructor(path: string, temporary: string, handle: FileHandle) {
    this.path = path
    this.#temporary = temporary
    this.#handle = handle
  }

  static async create(path: string): Promise<AtomicFile> {
    const target = await resolveTarget(path)
    const temporary = join(dirname(target), `.${basename(target)}.${process.pid}.${randomBytes(4).toString('hex')}.tmp`)
    try {
      return new AtomicFile(target, temporary, await open(temporary, 'wx'))
    } catch (cause) {
      throw ioError('write', path, cause)
    }
  }

  /** Bytes given to write() so far. */
  get position(): number {
    return this.#position
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#position += bytes.length
    if (this.#buffered + bytes.length > bufferBytes) await this.#empty()
    if (bytes.length > bufferBytes) return this.#writeThrough(bytes)
    this.#buffer.set(bytes, this.#buffered)
    this.#buffered += bytes.length
  }

  /** Writes at a place of its own; such bytes do not count into `position`. */
  async writeAt(bytes: Uint8Array, position: number): Promise<void> {
    await this.#writeThrough(bytes, position)
  }

  /** Makes the file visible under its name. */
  async commit(): Promise<void> {
    await this.#empty()
    try {
      await this.#flushing
      this.#checkFlushed()
      await this.#handle.sync()
      this.#open = false
      await this.#handle.close()
      await rename(this.#temporary, this.path)
    } catch (cause) {
      throw ioError('write', this.path, cause)
    }
    await syncFolder(dirname(this.path))
  }

  /** Leaves nothing behind; does nothing after a commit. */
  async discard(): Promise<void> {
    if (this.#open) {
      this.#open = false
      await this.#handle.close().catch(() => {})
    }
    await rm(this.#temporary, { force: true }).catch(() => {})
  }

  async #empty(): Promise<void> {
    const count = this.#buffered
    this.#buffered = 0
    await this.#writeThrough(this.#buffer.subarray(0, count))
  }

  async #writeThrough(bytes: Uint8Array, position?: number): Promise<void> {
    try {
      for (let done = 0; done < bytes.length;) {
        // A call writes 2 GiB at most; a full disk shows as a short write first, then as an error.
        const length = Math.min(bytes.length - done, 64 << 20)
        const at = position === undefined ? null : position + done
        done += (await this.#handle.write(bytes, done, length, at)).bytesWritten
      }
      this.#checkFlushed()
      this.#unflushed += bytes.length
      if (this.#unflushed >= flushBytes) this.#flushing ??= this.#flushEarly()
    } catch (cause) {
      throw ioError('write', this.path, cause)
    }
  }

  /** Beside the writes, which do not wait for it: with one that waits large files take twice as long. */
  async #flushEarly(): Promise<void> {
    this.#unflushed = 0
    await this.#handle.datasync().catch((cause: unknown) => (this.#failure = { cause }))
    this.#flushing = undefined
  }

  /** The system reports a failed flush once; later ones succeed. */
  #checkFlushed(): void {
    if (this.#failure) throw this.#failure.cause
  }
}

/** Writes a whole small file atomically. */
export async function writeFileAtomic(path: string, bytes: Uint8Array): Promise<void> {
  const file = await AtomicFile.create(path)
  try {
    await file.write(bytes)
    await file.commit()
  } catch (error) {
    await file.discard()
    throw error
  }
}

/** Where a file of this path is written: the target of a symbolic link. */
export async function resolveTarget(path: string): Promise<string> {
  let target = path
  try {
    target = await realpath(path)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw ioError('write', path, cause)
    return target
  }
  if (!(await stat(target)).isFile()) {
    throw new Qwen3Nvfp4Error('IO_FAILED', `cannot write ${path}: not a regular file`, { file: path })
  }
  return target
}

/** The rename itself survives a power cut only when the folder is flushed; not every system can. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r').catch(() => undefined)
  await folder?.sync().catch(() => {})
  await folder?.close()
}
