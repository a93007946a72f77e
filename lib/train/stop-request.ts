import type { StopReason } from './trainer-events'

/** Why a run is to end after its current step: asked by a signal, by SIGINT, or by `stop()`. */
export class StopRequest implements Disposable {
  reason: StopReason | undefined
  /** Called at the first request. */
  onRequest = () => {}
  readonly #signal: AbortSignal | undefined

  constructor(signal: AbortSignal | undefined, handleSigint: boolean) {
    this.#signal = signal
    if (signal?.aborted) this.stop()
    signal?.addEventListener('abort', this.stop, { once: true })
    // Once: the second SIGINT ends the process, as it would have.
    if (handleSigint) process.once('SIGINT', this.#interrupt)
  }

  readonly stop = (): void => this.#ask('aborted')

  readonly #interrupt = (): void => this.#ask('interrupted');

  [Symbol.dispose](): void {
    this.#signal?.removeEventListener('abort', this.stop)
    process.removeListener('SIGINT', this.#interrupt)
  }

  #ask(reason: StopReason): void {
    if (this.reason) return
    this.reason = reason
    this.onRequest()
  }
}
