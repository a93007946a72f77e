import type { BatchOptions, BatchSource } from '../../types/training'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'

/** The mean loss over every counted label of a set, in its own order; nothing is trained. */
export async function validationLoss(
  model: Qwen3Nvfp4Model,
  source: BatchSource,
  options: BatchOptions,
): Promise<{ loss: number; tokens: number }> {
  let [sum, tokens] = [0, 0]
  for await (const { batch } of source.batches({ ...options, shuffle: false, epochs: 1, from: undefined })) {
    const { ids, labels, ...layout } = batch
    await using loss = await model.loss(ids, labels, layout)
    sum += loss.value * loss.tokens
    tokens += loss.tokens
  }
  return { loss: sum / tokens, tokens }
}
