import type { PreparedBatch } from '../../types/training'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'

/** In the order of a forward pass, the first tensor that holds NaN or infinity; undefined when all are finite. */
export async function firstNonFinite(
  model: Qwen3Nvfp4Model,
  group: readonly PreparedBatch[],
): Promise<string | undefined> {
  for (const parameter of model.parameters()) {
    if (!isFiniteArray(await parameter.read())) return `the weights of ${parameter.name}`
  }
  for (const { batch } of group) {
    const { ids, attentionMask, segments } = batch
    const options = { attentionMask, segments, hiddenStates: true, logits: 'none' } as const
    await using result = await model.forward(ids, options)
    for (const [i, state] of result.hiddenStates.entries()) {
      if (isFiniteArray(await state.toFloat32Array())) continue
      const isLast = i === result.hiddenStates.length - 1
      return i === 0 ? 'the embeddings' : `the output of layer ${i - 1}${isLast ? ', or of the norm behind it' : ''}`
    }
  }
  return undefined
}

const isFiniteArray = (values: Float32Array): boolean => values.every(Number.isFinite)
