/** Steps whose values make the mean, and how few say too little. */
const windowSteps = 32
const fewestSteps = 8

/** The last values of a run, and what is far above their mean. Values of skipped steps are no part of it. */
export class RecentMean {
  #values: number[] = []

  add(value: number): void {
    this.#values.push(value)
    if (this.#values.length > windowSteps) this.#values.shift()
  }

  /** NaN before the first value. */
  get mean(): number {
    return this.#values.reduce((sum, value) => sum + value, 0) / this.#values.length
  }

  /** `factor` times the mean; undefined without a factor, and while there are too few values to tell. */
  limit(factor: number | undefined): number | undefined {
    return factor === undefined || this.#values.length < fewestSteps ? undefined : factor * this.mean
  }

  get state(): readonly number[] {
    return this.#values
  }

  set state(values: readonly number[]) {
    this.#values = [...values]
  }
}
