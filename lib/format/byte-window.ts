import type { ByteSource } from '../../types/format'
import { readFully } from './byte-source'

/** A view on the file that moves forward: small reads after a skipped payload, larger ones through tiny entries. */
export class ByteWindow {
  position = 0
  #bytes = Buffer.alloc(0)
  #start = 0

  /** `onTruncated` makes the error of a file that ends too early. */
  constructor(
    readonly source: ByteSource,
    readonly onTruncated: (message: string, offset: number) => Error,
  ) {}

  /** Bytes from the position to the end of the file. */
  get left(): number {
    return this.source.size - this.position
  }

  /** The next `count` bytes, or fewer at the end of the file. */
  async peek(count: number): Promise<{ bytes: Uint8Array; at: number; end: number }> {
    const wanted = Math.min(count, this.left)
    if (!this.#holds(wanted)) await this.#fill(wanted)
    const at = this.position - this.#start
    return { bytes: this.#bytes, at, end: Math.min(at + count, this.#bytes.length) }
  }

  async take(count: number, what: string): Promise<Buffer> {
    if (count > this.left) throw this.onTruncated(`the file ends inside ${what}`, this.position)
    if (!this.#holds(count)) await this.#fill(count)
    return this.takeNow(count)!
  }

  /** What `take` gives where no more of the file has to be read: awaiting each of many small pieces is slow. */
  takeNow(count: number): Buffer | undefined {
    if (!this.#holds(count)) return undefined
    const at = this.position - this.#start
    this.position += count
    return this.#bytes.subarray(at, at + count)
  }

  #holds(count: number): boolean {
    return this.position >= this.#start && this.position + count <= this.#start + this.#bytes.length
  }

  async #fill(count: number): Promise<void> {
    const skipped = this.position > this.#start + this.#bytes.length
    const ahead = Math.max(count, skipped ? 1024 : 65536)
    const bytes = Buffer.alloc(Math.min(ahead, this.left))
    const onShort = (got: number) => this.onTruncated('the file became shorter while it was read', this.position + got)
    await readFully(this.source, bytes, this.position, onShort)
    this.#bytes = bytes
    this.#start = this.position
  }
}
