import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Tokenizer, TrainingData, type BatchOptions, type PreparedBatch, type TrainingSampleInput } from 'qwen3-nvfp4'
import { temporaryFolder } from './files'
import { tinyTokenizerConfig, tinyTokenizerJson } from './tiny-tokenizer'

/** Ids 0 to 255 are bytes, then `<|endoftext|>`, `<|im_start|>` and `<|im_end|>`. */
export const byteTokenizer = (template?: string): Tokenizer =>
  Tokenizer.fromJson(tinyTokenizerJson(), {
    ...tinyTokenizerConfig(),
    ...(template !== undefined && { chat_template: template }),
  })

export function writeData(name: string, contents: string | Uint8Array): string {
  const file = join(temporaryFolder(), name)
  writeFileSync(file, contents)
  return file
}

/** A sample of `length` equal ids, which says by them which one it is. */
export const numbered = (id: number, length: number): TrainingSampleInput => ({
  ids: Array.from({ length }, () => id),
  labels: Array.from({ length }, () => id),
})

export const numberedSet = (count: number, length = 3): Promise<TrainingData> =>
  TrainingData.fromSamples(Array.from({ length: count }, (_, i) => numbered(i, length)))

export async function collect(data: TrainingData, options: BatchOptions): Promise<PreparedBatch[]> {
  const batches: PreparedBatch[] = []
  for await (const batch of data.batches(options)) batches.push(batch)
  return batches
}

/** The first id of every row, which says which sample of `numberedSet` it is. */
export const order = (batches: readonly PreparedBatch[]): number[] =>
  batches.flatMap(({ batch }) => batch.ids.map((row) => row[0]!))

/** Batches as plain data, to be compared, whatever file they are of. */
export const plain = (batches: readonly PreparedBatch[]): unknown =>
  batches.map(({ batch, origins: _, ...rest }) => ({
    ...rest,
    ids: batch.ids.map((row) => [...row]),
    labels: batch.labels.map((row) => [...row]),
    segments: batch.segments && [...batch.segments],
  }))
