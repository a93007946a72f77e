import type { ParameterForm, ParameterSource, StoredPart } from '../../types/checkpoint'

/** Bytes of a parameter that are read at a time. */
export const chunkBytes = 4 << 20

/** Reads parts of parameters in pieces, into a few buffers that serve again and again. */
export class StoredParts {
  readonly parameters: readonly ParameterForm[]
  readonly #source: ParameterSource
  readonly #free: Uint8Array[] = []

  constructor(source: ParameterSource) {
    this.#source = source
    this.parameters = source.parameters
  }

  /** The first piece is being read from now on, every other while the one before it is in use: until it is asked for. */
  read({ name, rows, cols, storage }: ParameterForm, part: StoredPart): AsyncGenerator<Uint8Array> {
    const dense = storage === 'fp32' ? 4 : 2
    const perElement = { values: dense, codes: 1 / 2, scales: 1 / 16, residualCodes: 1 / 2, residualScales: 1 / 16 }
    const total = rows * cols * perElement[part]
    const [source, free] = [this.#source, this.#free]
    const begin = (offset: number) => {
      const buffer = free.pop() ?? new Uint8Array(chunkBytes)
      const bytes = buffer.subarray(0, Math.min(chunkBytes, total - offset))
      const reading = source.read(name, part, offset, bytes).then(() => ({ buffer, bytes }))
      reading.catch(() => {}) // thrown where it is awaited, unless the writing has failed by then
      return reading
    }
    let next = begin(0)
    return (async function* () {
      for (let end = chunkBytes; ; end += chunkBytes) {
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
