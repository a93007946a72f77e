/** Reads payloads in pieces, of which the next is read while one is in use, into a few buffers that serve again and again. */
export class PieceReader {
  readonly #pieceBytes: number
  readonly #free: Uint8Array[] = []

  constructor(pieceBytes: number) {
    this.#pieceBytes = pieceBytes
  }

  /**
   * The pieces of `total` bytes, which `fill` puts into a target from an offset on. The first is being read from now on. A
   * piece holds until the next is asked for.
   */
  read(total: number, fill: (offset: number, target: Uint8Array) => Promise<unknown>): AsyncGenerator<Uint8Array> {
    const [free, pieceBytes] = [this.#free, this.#pieceBytes]
    const begin = (offset: number) => {
      const buffer = free.pop() ?? new Uint8Array(pieceBytes)
      const bytes = buffer.subarray(0, Math.min(pieceBytes, total - offset))
      const reading = fill(offset, bytes).then(() => ({ buffer, bytes }))
      reading.catch(() => {}) // thrown where it is awaited, unless the reader has stopped by then
      return reading
    }
    let next = begin(0)
    return (async function* () {
      for (let end = pieceBytes; ; end += pieceBytes) {
        const { buffer, bytes } = await next
        const isLast = end >= total
        if (!isLast) next = begin(end)
        yield bytes
        free.push(buffer)
        if (isLast) return
      }
    })()
  }
}
