import { randomBytes } from 'node:crypto'
import { link, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { dirname, join } from 'node:path'
import { ioError, Qwen3Nvfp4Error } from '../errors'

interface LockOwner {
  pid: number
  host: string
  /** When the process began, in the kernel's ticks since boot; '' where that cannot be read. Pids are used again. */
  begin: string
  /** Tells locks of one process apart. */
  nonce: string
}

/**
 * The right of one live process to write a folder: a file that names it. The lock of a process that has died is taken
 * over; that of another machine cannot be judged and is refused.
 */
export class DirectoryLock {
  readonly path: string
  readonly #owner: LockOwner

  private constructor(path: string, owner: LockOwner) {
    this.path = path
    this.#owner = owner
  }

  static async acquire(folder: string): Promise<DirectoryLock> {
    const path = join(folder, 'lock.json')
    const owner: LockOwner = {
      pid: process.pid,
      host: hostname(),
      begin: await processBegin(process.pid),
      nonce: randomBytes(8).toString('hex'),
    }
    // A lock appears with its content or not at all: linked from a file that is written already.
    const draft = join(folder, `.tmp-lock-${owner.nonce}`)
    try {
      for (;;) {
        await writeFile(draft, `${JSON.stringify(owner)}\n`)
        if (await tryLink(draft, path)) break
        await removeStale(path)
      }
    } catch (error) {
      throw error instanceof Qwen3Nvfp4Error ? error : ioError('lock', path, error)
    } finally {
      await rm(draft, { force: true })
    }
    return new DirectoryLock(path, owner)
  }

  /** Refuses to go on when the lock is another's, because somebody removed it by hand. */
  async require(): Promise<void> {
    const owner = await readOwner(this.path)
    if (owner?.nonce !== this.#owner.nonce) throw busy(this.path, owner)
  }

  /** Again is harmless, as is another's lock. */
  async release(): Promise<void> {
    if ((await readOwner(this.path))?.nonce === this.#owner.nonce) await rm(this.path, { force: true })
  }
}

async function tryLink(draft: string, path: string): Promise<boolean> {
  try {
    await link(draft, path)
    return true
  } catch (error) {
    // ENOENT: whoever holds the lock has cleaned the folder.
    if (['EEXIST', 'ENOENT'].includes((error as NodeJS.ErrnoException).code ?? '')) return false
    throw error
  }
}

/** Takes the lock of a dead process out of the way, and refuses that of a living one. */
async function removeStale(path: string): Promise<void> {
  const owner = await readOwner(path)
  if (owner && (await isAlive(owner))) throw busy(path, owner)
  const aside = join(dirname(path), `.tmp-lock-${randomBytes(8).toString('hex')}`)
  try {
    await rename(path, aside)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
    throw error
  }
  // Another process may have taken it over between the look and the rename: then it is given back.
  const moved = await readOwner(aside)
  if (moved?.nonce !== owner?.nonce) await tryLink(aside, path)
  await rm(aside, { force: true })
}

/** undefined for no lock, and for one that is not ours to read: it names nobody who could be alive. */
async function readOwner(path: string): Promise<LockOwner | undefined> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as LockOwner
  } catch (error) {
    if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

async function isAlive({ pid, host, begin }: LockOwner): Promise<boolean> {
  if (host !== hostname()) return true
  try {
    process.kill(pid, 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
  return begin === '' || begin === (await processBegin(pid))
}

/** Field 22 of /proc/<pid>/stat; the name before it may hold anything, parentheses included. */
async function processBegin(pid: number): Promise<string> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? ''
}

function busy(path: string, owner: LockOwner | undefined): Qwen3Nvfp4Error {
  const who = owner ? `process ${owner.pid} on ${owner.host}` : 'nobody any more'
  const remedy =
    owner && owner.host !== hostname()
      ? 'delete the file if that process is gone, which cannot be seen from here'
      : 'wait for it, or choose another checkpointDir'
  return new Qwen3Nvfp4Error('CHECKPOINT_DIR_BUSY', `${path} belongs to ${who}: ${remedy}`, { file: path })
}
