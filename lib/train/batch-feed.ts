import type { BatchOptions, BatchSource, PreparedBatch } from '../../types/training'

/** The batches of a run, taken in groups. */
export class BatchFeed {
  readonly #batches: AsyncGenerator<PreparedBatch, void, undefined>
  readonly #closing = new AbortController()
  #giveUp = () => {}

  constructor(source: BatchSource, options: BatchOptions) {
    this.#batches = source.batches({ ...options, signal: this.#closing.signal })
  }

  /** Up to `count` batches, fewer at the end of the data; undefined once it is closed, however long data takes to come. */
  async take(count: number): Promise<PreparedBatch[] | undefined> {
    const group: PreparedBatch[] = []
    while (group.length < count && !this.#closing.signal.aborted) {
      const next = await new Promise<IteratorResult<PreparedBatch, void> | undefined>((resolve, reject) => {
        this.#giveUp = () => resolve(undefined)
        this.#batches.next().then(resolve, reject)
      })
      if (!next) return undefined
      if (next.done) return group
      group.push(next.value)
    }
    return this.#closing.signal.aborted ? undefined : group
  }

  /** Again is harmless. */
  close(): void {
    this.#giveUp()
    this.#closing.abort()
    this.#batches.return().catch(() => {})
  }
}
