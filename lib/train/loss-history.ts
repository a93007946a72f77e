/** A point of a curve: the mean of the losses of `count` steps, the last of which is `step`. */
export interface LossPoint {
  step: number
  loss: number
  count: number
}

export interface LossHistoryState {
  points: LossPoint[]
  /** Steps that a point is the mean of. */
  perPoint: number
}

const mostPoints = 2048

/**
 * The losses of a run of any length in at most 2048 points: when these are full, every two become one. What it holds
 * depends on the losses alone, so that a resumed run draws the curve of one that never stopped.
 */
export class LossHistory {
  #points: LossPoint[] = []
  #perPoint = 1

  add(step: number, loss: number): void {
    const last = this.#points.at(-1)
    if (last && last.count < this.#perPoint) {
      last.loss += (loss - last.loss) / ++last.count
      last.step = step
      return
    }
    if (this.#points.length === mostPoints) this.#halve()
    this.#points.push({ step, loss, count: 1 })
  }

  get points(): readonly LossPoint[] {
    return this.#points
  }

  get state(): LossHistoryState {
    return { points: this.#points, perPoint: this.#perPoint }
  }

  set state({ points, perPoint }: LossHistoryState) {
    this.#points = points.map((point) => ({ ...point }))
    this.#perPoint = perPoint
  }

  #halve(): void {
    const halved: LossPoint[] = []
    for (let i = 0; i < this.#points.length; i += 2) {
      const [a, b] = [this.#points[i]!, this.#points[i + 1]!]
      const count = a.count + b.count
      halved.push({ step: b.step, loss: (a.loss * a.count + b.loss * b.count) / count, count })
    }
    this.#points = halved
    this.#perPoint *= 2
  }
}
