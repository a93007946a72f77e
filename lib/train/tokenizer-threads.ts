import { Worker } from 'node:worker_threads'
import type { AnswerOptions, TrainingSample } from '../../types/training'
import { Qwen3Nvfp4Error, type ErrorCode } from '../errors'
import type { LineFormat } from './line-formats'
import type { LinePlace } from './line-tokenizer'

/** Samples that are asked of a thread before its first answer, so that it never waits for the next. */
const asksPerThread = 16

/** Beside this file in dist/. Where lib/ is run as it is, by tsx, threads cannot be: they take what was built. */
const built = import.meta.url.endsWith('.ts') ? '../../dist/' : './'

/** What a thread is begun with. */
export interface ThreadSetup {
  /** Where the tokenizer is read again, and the hash of what it has to be. */
  tokenizerPath: string
  tokenizerHash: string
  answers: AnswerOptions
  format: LineFormat
}

export interface ThreadQuestion {
  id: number
  place: LinePlace
}

/** Errors lose their class and fields on the way. */
export interface ThreadError {
  message: string
  code?: ErrorCode
  file?: string
  line?: number
}

export type ThreadAnswer = { id: number } & (TrainingSample | { error: ThreadError })

interface Waiting {
  resolve(sample: TrainingSample): void
  reject(error: unknown): void
}

/** Threads that read and tokenise lines, each with a tokenizer of its own. */
export class TokenizerThreads {
  readonly #workers: readonly Worker[]
  readonly #waiting = new Map<number, Waiting>()
  #asked = 0
  #failure: unknown

  constructor(count: number, setup: ThreadSetup) {
    this.#workers = Array.from({ length: count }, () => this.#start(setup))
  }

  static readAhead(count: number): number {
    return Math.max(1, asksPerThread * count)
  }

  read(place: LinePlace): Promise<TrainingSample> {
    return new Promise((resolve, reject) => {
      if (this.#failure) throw this.#failure
      const id = this.#asked++
      // Threads keep the process alive while somebody waits for them.
      if (this.#waiting.size === 0) for (const worker of this.#workers) worker.ref()
      this.#waiting.set(id, { resolve, reject })
      const question: ThreadQuestion = { id, place }
      this.#workers[id % this.#workers.length]!.postMessage(question)
    })
  }

  async close(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.terminate()))
  }

  #start(setup: ThreadSetup): Worker {
    const worker = new Worker(new URL(`${built}tokenizer-thread.js`, import.meta.url), { workerData: setup })
    worker.on('message', (answer: ThreadAnswer) => this.#settle(answer))
    worker.on('error', (cause) => this.#fail(cause))
    worker.unref()
    return worker
  }

  #settle({ id, ...answer }: ThreadAnswer): void {
    const { resolve, reject } = this.#waiting.get(id)!
    this.#waiting.delete(id)
    if (this.#waiting.size === 0) for (const worker of this.#workers) worker.unref()
    if ('error' in answer) reject(toError(answer.error))
    else resolve(answer)
  }

  /** A thread that ends without having been told to. */
  #fail(cause: Error): void {
    this.#failure ??= new Qwen3Nvfp4Error('INTERNAL', `a tokenizer thread ended: ${cause.message}`, { cause })
    for (const { reject } of this.#waiting.values()) reject(this.#failure)
    this.#waiting.clear()
  }
}

function toError({ message, code, ...place }: ThreadError): Error {
  return code ? new Qwen3Nvfp4Error(code, message, place) : new Error(message)
}
