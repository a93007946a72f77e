import { open, type FileHandle } from 'node:fs/promises'
import { ioError } from '../errors'

/** The expectations of probes may be patterns, which JSON does not have. */
const patternsAsText = (_: string, value: unknown): unknown =>
  Object.prototype.toString.call(value) === '[object RegExp]' ? String(value) : value

/** A line by itself takes longer to hand to the disk than a Trainer takes for all else of a step. */
const gatherMs = 200

/**
 * A file of JSON lines that a run adds to, a few times a second. A line that a killed process left unfinished is ended
 * first.
 */
export class TrainLog {
  readonly #path: string
  readonly #file: FileHandle
  #lines = ''
  #timer: NodeJS.Timeout | undefined
  #written: Promise<void> = Promise.resolve()
  #failure: unknown

  private constructor(path: string, file: FileHandle) {
    this.#path = path
    this.#file = file
  }

  static async open(path: string): Promise<TrainLog> {
    try {
      const file = await open(path, 'a+')
      const { size } = await file.stat()
      const last = Buffer.alloc(1)
      if (size > 0) await file.read(last, 0, 1, size - 1)
      if (size > 0 && last[0] !== 0x0a) await file.write('\n')
      return new TrainLog(path, file)
    } catch (cause) {
      throw ioError('open', path, cause)
    }
  }

  /** Does not wait for the disk; an earlier line that could not be written is thrown here. */
  add(entry: object): void {
    if (this.#failure) throw this.#failure
    this.#lines += `${JSON.stringify({ time: new Date().toISOString(), ...entry }, patternsAsText)}\n`
    this.#timer ??= setTimeout(() => (this.#written = this.#written.then(() => this.#write())), gatherMs)
  }

  async close(): Promise<void> {
    clearTimeout(this.#timer)
    await this.#written
    await this.#write()
    await this.#file.close()
    if (this.#failure) throw this.#failure
  }

  async #write(): Promise<void> {
    const lines = this.#lines
    this.#lines = ''
    this.#timer = undefined
    try {
      if (!this.#failure) await this.#file.appendFile(lines)
    } catch (cause) {
      this.#failure = ioError('write', this.#path, cause)
    }
  }
}
