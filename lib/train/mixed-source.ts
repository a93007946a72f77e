/** Several sets as one, each with its share of the samples. */
import { deriveSeed } from './permutation'
import { hashOf, type LocatedSample, type RunSettings, type SampleRun, type SampleSource } from './sample-source'

export interface WeightedSource {
  source: SampleSource
  /** Share of the samples, relative to the other weights. */
  weight: number
}

/**
 * An epoch has as many samples as the sets have together; every stretch of it holds each set's share to within a few
 * samples. A set that is used up begins again, in another order.
 */
export class MixedSource implements SampleSource {
  readonly fingerprint: string
  readonly sampleCount: number | undefined
  readonly isStream = false
  readonly #parts: readonly WeightedSource[]

  constructor(parts: readonly WeightedSource[]) {
    this.#parts = parts
    const counts = parts.map(({ source }) => source.sampleCount)
    this.sampleCount = counts.reduce(
      (sum, count) => (sum === undefined || count === undefined ? undefined : sum + count),
      0,
    )
    this.fingerprint = hashOf({
      format: { kind: 'mix' },
      parts: parts.map(({ source, weight }) => ({ fingerprint: source.fingerprint, weight })),
    })
  }

  async open(settings: RunSettings): Promise<SampleRun> {
    const runs: SampleRun[] = []
    for (const [i, { source }] of this.#parts.entries()) {
      runs.push(await source.open({ ...settings, seed: deriveSeed(settings.seed, i) }))
    }
    return new MixedRun(runs, this.#parts)
  }
}

class MixedRun implements SampleRun {
  readonly readAhead: number
  readonly #runs: readonly SampleRun[]
  /** Of each set, its share of what the sets before it leave. */
  readonly #shares: readonly number[]
  #counts: readonly number[] | undefined

  constructor(runs: readonly SampleRun[], parts: readonly WeightedSource[]) {
    this.#runs = runs
    this.readAhead = Math.max(...runs.map((run) => run.readAhead))
    this.#shares = parts.map(({ weight }, i) => weight / parts.slice(i).reduce((sum, part) => sum + part.weight, 0))
  }

  async at(epoch: number, place: number): Promise<LocatedSample | undefined> {
    const counts = await this.#allCounts()
    const total = counts.reduce((sum, count) => sum + count, 0)
    if (place >= total) return undefined
    const { part, taken } = this.#choose(epoch * total + place)
    return this.#runs[part]!.at(Math.floor(taken / counts[part]!), taken % counts[part]!)
  }

  async count(): Promise<number> {
    return (await this.#allCounts()).reduce((sum, count) => sum + count, 0)
  }

  async close(): Promise<void> {
    for (const run of this.#runs) await run.close()
  }

  /**
   * Which set gives the sample behind `drawn` others, and how many it gave of these: computed, not counted, so that a
   * cursor needs no replay. A set gives one whenever the rounded product of its share and the number drawn grows.
   */
  #choose(drawn: number): { part: number; taken: number } {
    let left = drawn
    for (const [part, share] of this.#shares.entries()) {
      const taken = Math.round(left * share)
      if (part === this.#shares.length - 1 || Math.round((left + 1) * share) > taken) return { part, taken }
      left -= taken
    }
    throw new RangeError('a mix of no sets')
  }

  async #allCounts(): Promise<readonly number[]> {
    if (!this.#counts) {
      const counts: number[] = []
      for (const run of this.#runs) counts.push(await run.count())
      this.#counts = counts
    }
    return this.#counts
  }
}
