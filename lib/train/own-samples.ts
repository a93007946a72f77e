/** Sets of ids and labels that are made elsewhere: kept in memory, or streamed. */
import { createHash } from 'node:crypto'
import type { TrainingSample, TrainingSampleInput } from '../../types/training'
import { checkInt32Values, wrongShape, wrongType } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { ignoreLabel } from '../model/token-batch'
import { SampleStore } from './sample-store'
import {
  IndexedRun,
  hashOf,
  type LocatedSample,
  type RunSettings,
  type SampleRun,
  type SampleSource,
} from './sample-source'

const maxInt32 = 2 ** 31 - 1

function checkSample(value: unknown, name: string): TrainingSample {
  if (typeof value !== 'object' || value === null) throw wrongType('a sample { ids, labels }', name, value)
  const { ids, labels } = value as Partial<TrainingSampleInput>
  const sample = {
    ids: checkInt32Values(`${name}.ids`, ids, 0, maxInt32),
    labels: checkInt32Values(`${name}.labels`, labels, 0, maxInt32, ignoreLabel),
  }
  if (sample.ids.length !== sample.labels.length) {
    throw wrongShape(`${sample.ids.length} labels as of ids`, `${name}.labels`, `${sample.labels.length}`)
  }
  if (sample.ids.length === 0) throw wrongShape('at least one id', `${name}.ids`, 'none')
  return sample
}

const located = (sample: TrainingSample, index: number): LocatedSample => ({
  ...sample,
  origin: { where: `samples[${index}]` },
})

/** Samples that are all there. */
export class StoredSource implements SampleSource {
  readonly fingerprint: string
  readonly sampleCount: number
  readonly isStream = false
  readonly #store: SampleStore

  constructor(values: Iterable<TrainingSampleInput>) {
    const samples = Array.from(values, (value, i) => checkSample(value, `samples[${i}]`))
    if (samples.length === 0) throw new Qwen3Nvfp4Error('TRAINING_DATA_EMPTY', 'the iterable of samples gave none')
    this.sampleCount = samples.length
    this.#store = new SampleStore(samples.length)
    const hash = createHash('sha256')
    samples.forEach((sample, i) => {
      this.#store.set(i, sample)
      hash.update(Int32Array.of(sample.ids.length)).update(sample.ids).update(sample.labels)
    })
    this.fingerprint = hashOf({ format: { kind: 'samples' }, samples: hash.digest('hex') })
  }

  open(settings: RunSettings): SampleRun {
    const read = (index: number) => {
      const sample = index < this.sampleCount ? this.#store.get(index) : undefined
      return sample && located(sample, index)
    }
    return new IndexedRun({ count: () => this.sampleCount, read }, settings)
  }
}

/** What gives a stream's samples from the beginning, once an epoch. */
export type SampleStream = () => AsyncIterable<TrainingSampleInput> | Iterable<TrainingSampleInput>

/** Samples that come one after the other; to go on somewhere, those before it are skipped. */
export class StreamedSource implements SampleSource {
  readonly fingerprint: string
  readonly sampleCount = undefined
  readonly isStream = true
  readonly #begin: SampleStream

  constructor(begin: SampleStream, name: string | undefined) {
    this.#begin = begin
    this.fingerprint = hashOf({ format: { kind: 'stream', name } })
  }

  open({ shuffle }: RunSettings): SampleRun {
    if (shuffle) throw new TypeError('Expected false for shuffle, as a stream has one order, but received true')
    return new StreamRun(this.#begin)
  }
}

class StreamRun implements SampleRun {
  readonly readAhead = 1
  readonly #begin: SampleStream
  #iterator: AsyncIterator<unknown> | Iterator<unknown> | undefined
  #epoch = -1
  #place = 0

  constructor(begin: SampleStream) {
    this.#begin = begin
  }

  async at(epoch: number, place: number): Promise<LocatedSample | undefined> {
    if (epoch !== this.#epoch || place < this.#place) await this.#restart(epoch)
    for (;;) {
      const { done, value } = await this.#iterator!.next()
      if (done) return undefined
      const index = this.#place++
      if (index === place) return located(checkSample(value, `samples[${index}]`), index)
    }
  }

  count(): never {
    throw new TypeError('Expected a set that can be counted but received a stream')
  }

  async close(): Promise<void> {
    await this.#iterator?.return?.()
    this.#iterator = undefined
  }

  async #restart(epoch: number): Promise<void> {
    await this.close()
    const samples = this.#begin()
    this.#iterator = Symbol.asyncIterator in samples ? samples[Symbol.asyncIterator]() : samples[Symbol.iterator]()
    this.#epoch = epoch
    this.#place = 0
  }
}
