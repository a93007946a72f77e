import { open, type FileHandle } from 'node:fs/promises'
import { ioError } from '../errors'

/** The expectations of probes may be patterns, which JSON does not have. */
const patternsAsText = (_: string, value: unknown): unknown =>
  Object.prototype.toString.call(value) === '[object RegExp]' ? String(value) : value

/** A file of JSON lines that a run adds to. A line that a killed process left unfinished is ended first. */
export class TrainLog {
  readonly #path: string
  readonly #file: FileHandle
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
    const line = `${JSON.stringify({ time: new Date().toISOString(), ...entry }, patternsAsText)}\n`
    this.#written = this.#written.then(() => this.#write(line))
  }

  async close(): Promise<void> {
    await this.#written
    await this.#file.close()
    if (this.#failure) throw this.#failure
  }

  async #write(line: string): Promise<void> {
    try {
      if (!this.#failure) await this.#file.write(line)
    } catch (cause) {
      this.#failure = ioError('write', this.#path, cause)
    }
  }
}
