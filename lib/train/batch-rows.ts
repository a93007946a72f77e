import type { DataCursor, PreparedBatch } from '../../types/training'
import { ignoreLabel } from '../model/token-batch'
import type { BatchPlan } from './batch-options'
import type { FittedSample } from './fit-sample'

/** Packed rows are padded to a multiple of this, so that nearly all batches of a run have one shape. */
const packedMultiple = 64

interface Row {
  samples: FittedSample[]
  tokens: number
}

/** The rows of a batch while they are being filled. */
export class BatchRows {
  readonly #plan: BatchPlan
  readonly #rows: Row[] = []

  constructor(plan: BatchPlan) {
    this.#plan = plan
  }

  get isEmpty(): boolean {
    return this.#rows.length === 0
  }

  /**
   * Puts a sample into the first row with room for it, or into a new one; false when there is neither. So a batch holds
   * samples that follow each other, however they are packed, and their number is all that a cursor needs.
   */
  add(sample: FittedSample): boolean {
    const { batchSize, maxTokens, pack } = this.#plan
    let row = pack ? this.#rows.find(({ tokens }) => tokens + sample.ids.length <= maxTokens) : undefined
    if (!row) {
      if (this.#rows.length === batchSize) return false
      this.#rows.push((row = { samples: [], tokens: 0 }))
    }
    row.samples.push(sample)
    row.tokens += sample.ids.length
    return true
  }

  finish(cursor: DataCursor): PreparedBatch {
    const { maxTokens, pack, padTokenId } = this.#plan
    const longest = Math.max(...this.#rows.map(({ tokens }) => tokens))
    const width = pack ? Math.min(maxTokens, Math.ceil(longest / packedMultiple) * packedMultiple) : longest
    const ids = new Int32Array(this.#rows.length * width).fill(padTokenId)
    const labels = new Int32Array(ids.length).fill(ignoreLabel)
    const segments = new Int32Array(ids.length)
    this.#rows.forEach(({ samples }, b) => {
      let at = b * width
      samples.forEach((sample, number) => {
        ids.set(sample.ids, at)
        labels.set(sample.labels, at)
        segments.fill(number, at, (at += sample.ids.length))
      })
      segments.fill(samples.length, at, (b + 1) * width)
    })
    const rowsOf = (values: Int32Array) => this.#rows.map((_, b) => values.subarray(b * width, (b + 1) * width))
    const all = this.#rows.flatMap(({ samples }) => samples)
    return {
      batch: { ids: rowsOf(ids), labels: rowsOf(labels), ...(pack && { segments }) },
      cursor,
      samples: all.length,
      tokens: all.reduce((sum, { tokens }) => sum + tokens, 0),
      truncated: all.filter(({ truncated }) => truncated).length,
      origins: all.map(({ origin }) => origin),
    }
  }
}
