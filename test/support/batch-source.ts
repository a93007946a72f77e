/** Batches of made-up samples for tests of the trainer: every sample is its number, and the order is that of the numbers. */
import type { BatchOptions, BatchSource, PreparedBatch } from 'qwen3-nvfp4'
import { idsOf } from './tiny-model'

export interface FakeSourceOptions {
  samples?: number
  tokens?: number
  fingerprint?: string
  /** Called with the number of each sample before it is given out. */
  onSample?: (sample: number) => void | Promise<void>
}

export function batchSource(options: FakeSourceOptions = {}): BatchSource {
  const { samples = 6, tokens = 12, fingerprint = 'made up', onSample } = options
  const rowOf = (sample: number) => {
    const ids = Int32Array.from(idsOf(tokens, 7 * sample + 1))
    // An odd sample has fewer labels that count, so that batches weigh differently.
    const labels = ids.map((id, t) => (sample % 2 === 1 && t < tokens / 2 ? -100 : id))
    return { ids, labels, tokens: labels.subarray(1).filter((label) => label >= 0).length }
  }
  async function* batches({
    batchSize = 1,
    epochs = 1,
    from,
    signal,
  }: BatchOptions): AsyncGenerator<PreparedBatch, void> {
    let { epoch, sample } = from ?? { epoch: 0, sample: 0 }
    for (; epoch < epochs; epoch++, sample = 0) {
      while (sample < samples) {
        signal?.throwIfAborted()
        const rows = []
        for (; rows.length < batchSize && sample < samples; sample++) {
          await onSample?.(sample)
          rows.push(rowOf(sample))
        }
        yield {
          batch: { ids: rows.map(({ ids }) => ids), labels: rows.map(({ labels }) => labels) },
          cursor: sample < samples ? { epoch, sample } : { epoch: epoch + 1, sample: 0 },
          samples: rows.length,
          tokens: rows.reduce((sum, row) => sum + row.tokens, 0),
          truncated: 0,
        }
      }
    }
  }
  const countBatches = async ({ batchSize = 1, epochs = 1 }: BatchOptions) => epochs * Math.ceil(samples / batchSize)
  return { fingerprint, sampleCount: samples, batches, countBatches }
}
