/** What a set of training data is made of, whatever it is read from. */
import { createHash } from 'node:crypto'
import type { SampleOrigin, TrainingSample, TrainingTokenizer } from '../../types/training'
import { Qwen3Nvfp4Error, type ErrorCode } from '../errors'
import type { Pacer } from './pacer'
import { Permutation } from './permutation'

export type MaybePromise<T> = T | Promise<T>

export interface LocatedSample extends TrainingSample {
  origin: SampleOrigin
  /** Its text, shortened, for the message of an error. */
  content?(): Promise<string>
}

/** What decides samples and their order, beside the contents. */
export interface RunSettings {
  maxTokens: number
  /** Undefined: shuffled where that is possible. */
  shuffle: boolean | undefined
  seed: bigint
  pacer: Pacer
}

/** One pass over a set, epoch after epoch. */
export interface SampleRun {
  /** Samples that may be asked for before the one at the front is there: 1 where order matters or nothing is gained. */
  readonly readAhead: number
  /** The sample at a place of an epoch's order, undefined behind its last one. */
  at(epoch: number, place: number): MaybePromise<LocatedSample | undefined>
  /** Samples in an epoch. */
  count(): MaybePromise<number>
  close(): MaybePromise<void>
}

export interface SampleSource {
  readonly fingerprint: string
  readonly sampleCount: number | undefined
  /** Whether it can only be read from its beginning on. */
  readonly isStream: boolean
  open(settings: RunSettings): MaybePromise<SampleRun>
}

/** Samples that can be read in any order. */
export interface IndexedSamples {
  /** As in SampleRun. Default: 1. */
  readonly readAhead?: number
  count(): MaybePromise<number>
  read(index: number): MaybePromise<LocatedSample | undefined>
  close?(): MaybePromise<void>
}

/** Indexed samples in their own order or in a random one. */
export class IndexedRun implements SampleRun {
  readonly readAhead: number
  readonly #samples: IndexedSamples
  readonly #seed: bigint | undefined
  #order: { epoch: number; count: number; permutation: Permutation } | undefined

  constructor(samples: IndexedSamples, { shuffle = true, seed }: RunSettings) {
    this.#samples = samples
    this.readAhead = samples.readAhead ?? 1
    this.#seed = shuffle ? seed : undefined
  }

  async at(epoch: number, place: number): Promise<LocatedSample | undefined> {
    if (this.#seed === undefined) return this.#samples.read(place)
    if (this.#order?.epoch !== epoch) {
      const count = await this.#samples.count()
      this.#order = { epoch, count, permutation: new Permutation(count, this.#seed, epoch) }
    }
    const { count, permutation } = this.#order
    return place < count ? this.#samples.read(permutation.at(place)) : undefined
  }

  count(): MaybePromise<number> {
    return this.#samples.count()
  }

  close(): MaybePromise<void> {
    return this.#samples.close?.()
  }
}

export async function sampleError(code: ErrorCode, what: string, sample: LocatedSample): Promise<Qwen3Nvfp4Error> {
  const { where, ...place } = sample.origin
  const content = await sample.content?.()
  return new Qwen3Nvfp4Error(code, `${where}: ${what}${content === undefined ? '' : `: ${content}`}`, place)
}

export const hashOf = (value: unknown): string => createHash('sha256').update(JSON.stringify(value)).digest('hex')

/** Words, signs and scripts that tokenizers cut differently. */
const probe =
  "The quick brown fox's 12345 jumps…\n\n\tif (x != 0) { return }  你是誰？我是 F# 之神 👋 Привет señor naïve"

/** What of a tokenizer decides the ids of a text. */
export const tokenizerPrint = (tokenizer: TrainingTokenizer): unknown => ({
  vocabSize: tokenizer.vocabSize,
  stopTokenIds: tokenizer.stopTokenIds,
  template: tokenizer.chatTemplate?.source,
  probe: [...tokenizer.encode(probe)],
})
