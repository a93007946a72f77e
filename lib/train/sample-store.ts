import type { TrainingSample } from '../../types/training'
import { ignoreLabel } from '../model/token-batch'

/** Int32 values a page: 4 MiB. Pages, as one array of all ids would have to be copied whenever it grows. */
const pageValues = 2 ** 20

/** Int32 values appended to pages and read as copies. */
export class Int32Pages {
  readonly #pages: Int32Array[] = []
  #length = 0

  get length(): number {
    return this.#length
  }

  append(values: Int32Array): void {
    for (let done = 0; done < values.length;) {
      const at = this.#length % pageValues
      if (at === 0) this.#pages.push(new Int32Array(pageValues))
      const part = values.subarray(done, done + pageValues - at)
      this.#pages.at(-1)!.set(part, at)
      this.#length += part.length
      done += part.length
    }
  }

  slice(begin: number, end: number): Int32Array {
    const result = new Int32Array(end - begin)
    for (let at = begin; at < end;) {
      const page = this.#pages[Math.floor(at / pageValues)]!
      const offset = at % pageValues
      const part = page.subarray(offset, offset + end - at)
      result.set(part, at - begin)
      at += part.length
    }
    return result
  }
}

/** The samples of a set by their index, in 4 bytes a token and 12 a sample. */
export class SampleStore {
  readonly #values = new Int32Pages()
  readonly #begins: Float64Array
  /** Tokens of a sample; 0 for one that is not here. Negative where ids and labels are stored one behind the other. */
  readonly #lengths: Int32Array
  readonly #maxValues: number

  constructor(count: number, maxBytes = Infinity) {
    this.#begins = new Float64Array(count)
    this.#lengths = new Int32Array(count)
    this.#maxValues = maxBytes / 4
  }

  get(index: number): TrainingSample | undefined {
    const length = this.#lengths[index]!
    const begin = this.#begins[index]!
    if (length === 0) return undefined
    if (length < 0) {
      return {
        ids: this.#values.slice(begin, begin - length),
        labels: this.#values.slice(begin - length, begin - 2 * length),
      }
    }
    const ids = this.#values.slice(begin, begin + length)
    const labels = new Int32Array(length)
    for (let t = 0; t < length; t++) {
      const value = ids[t]!
      labels[t] = value < 0 ? ignoreLabel : value
      if (value < 0) ids[t] = ~value
    }
    return { ids, labels }
  }

  /** Keeps a sample while there is room. */
  set(index: number, { ids, labels }: TrainingSample): void {
    if (this.#lengths[index] !== 0 || this.#values.length + 2 * ids.length > this.#maxValues) return
    this.#begins[index] = this.#values.length
    // An id that is not its own label has none in nearly every sample: its complement says so in its place.
    if (labels.every((label, t) => label === ids[t] || label === ignoreLabel)) {
      this.#values.append(ids.map((id, t) => (labels[t] === id ? id : ~id)))
      this.#lengths[index] = ids.length
    } else {
      this.#values.append(ids)
      this.#values.append(labels)
      this.#lengths[index] = -ids.length
    }
  }
}
