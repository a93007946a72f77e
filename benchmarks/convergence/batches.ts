/** Batches and rates, the same as peer.py has them. */
import { readFileSync } from 'node:fs'
import { mulberry32 } from '../support/mulberry32'
import type { Run } from './runs'

export interface Batch {
  ids: number[][]
  labels: number[][]
}

const HELD_OUT_BATCH = 32

/** Where each window of `count` begins: mulberry32 of the seed, the upper bits of its product with the room there is. */
function windowStarts(seed: number, count: number, room: number): number[] {
  const random = mulberry32(seed)
  return Array.from({ length: count }, () => Math.floor(random() * room))
}

export class Batches {
  readonly #text: Uint8Array
  readonly #starts: number[]
  readonly #size: number
  readonly #tokens: number

  private constructor(path: string, starts: (room: number) => number[], size: number, tokens: number) {
    this.#text = readFileSync(path)
    this.#starts = starts(this.#text.length - tokens)
    this.#size = size
    this.#tokens = tokens
  }

  static train(folder: string, { text, seed, steps, batch, tokens }: Run): Batches {
    return new Batches(`${folder}/${text}.bin`, (room) => windowStarts(seed, steps * batch, room), batch, tokens)
  }

  /** Windows at equal distances. */
  static heldOut(folder: string, { text, tokens }: Run, count: number): Batches {
    const windows = count * HELD_OUT_BATCH
    const starts = (room: number) => Array.from({ length: windows }, (_, i) => Math.floor((i * room) / windows))
    return new Batches(`${folder}/${text}-held-out.bin`, starts, HELD_OUT_BATCH, tokens)
  }

  get length(): number {
    return this.#starts.length / this.#size
  }

  at(index: number): Batch {
    const starts = this.#starts.slice(index * this.#size, (index + 1) * this.#size)
    const rows = (shift: number) => starts.map((at) => [...this.#text.subarray(at + shift, at + shift + this.#tokens)])
    return { ids: rows(0), labels: rows(1) }
  }
}

/** Linear warm-up, then a cosine to a tenth. */
export const rate = ({ lr, steps, warmup }: Run, step: number): number =>
  lr * Math.min(1, (step + 1) / warmup) * (0.1 + 0.45 * (1 + Math.cos((Math.PI * step) / steps)))
