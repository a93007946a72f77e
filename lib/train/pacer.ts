/** Milliseconds of work between two looks at the event loop; with the longest single piece of work it stays below 10. */
const sliceMs = 2

/** Cuts long preparation into slices, between which timers and callbacks run, and ends it when a signal is aborted. */
export class Pacer {
  readonly #signals: readonly AbortSignal[]
  #sliceBegan = performance.now()

  constructor(...signals: (AbortSignal | undefined)[]) {
    this.#signals = signals.filter((signal) => signal !== undefined)
  }

  /** Between two pieces of work; undefined while the slice goes on, so that most calls cost no promise. */
  pause(): Promise<void> | undefined {
    for (const signal of this.#signals) signal.throwIfAborted()
    return performance.now() - this.#sliceBegan < sliceMs ? undefined : this.#letOthersRun()
  }

  async #letOthersRun(): Promise<void> {
    await new Promise<void>((resolve) => setImmediate(resolve))
    for (const signal of this.#signals) signal.throwIfAborted()
    this.#sliceBegan = performance.now()
  }
}

/** Runs work that yields between its pieces, in slices. */
export async function runPaced<T>(work: Generator<void, T, void>, pacer: Pacer): Promise<T> {
  for (;;) {
    const { done, value } = work.next()
    if (done) return value
    const pause = pacer.pause()
    if (pause) await pause
  }
}

/** Runs the same work at once. */
export function runNow<T>(work: Generator<void, T, void>): T {
  for (;;) {
    const { done, value } = work.next()
    if (done) return value
  }
}
