import type { Recompute } from '../../types/native'
import type { StepStats } from '../../types/options'
import type { PreparedBatch } from '../../types/training'
import type { Loss } from '../model/loss'
import type { PackedAdamW } from '../model/packed-adamw'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'

export interface OptimizerStepOptions {
  lr: number
  maxGradNorm?: number
  recompute: Recompute
  /** Keep the gradients until the update even of a single batch. */
  keepsGradients: boolean
  /** Leave the step out when its loss, or the norm of its gradients, is above this. */
  skipAboveLoss?: number
  skipAboveNorm?: number
  /** The loss is the distance of the final hidden states from those of this model. */
  teacher?: Qwen3Nvfp4Model
}

export interface OptimizerStepStats extends Omit<StepStats, 'step' | 'skipped'> {
  loss: number
  tokens: number
  skipped?: 'loss' | 'norm'
}

/**
 * One step on one batch, fused unless gradients are kept, or on several, whose gradients are summed so that every counted
 * label weighs the same. What is not finite ends it with NON_FINITE_GRADIENT.
 */
export async function takeOptimizerStep(
  model: Qwen3Nvfp4Model,
  optimizer: PackedAdamW,
  group: readonly PreparedBatch[],
  options: OptimizerStepOptions,
): Promise<OptimizerStepStats> {
  const { lr, maxGradNorm, recompute, keepsGradients, skipAboveLoss, skipAboveNorm } = options
  if (!keepsGradients) {
    const { batch } = group[0]!
    const stats = await optimizer.trainStep(batch, { lr, maxGradNorm, recompute, skipAboveLoss })
    return { ...stats, skipped: stats.skipped ? 'loss' : undefined }
  }
  const tokens = group.reduce((sum, batch) => sum + batch.tokens, 0)
  const loss = await sumGradients(model, group, options)
  if (skipAboveLoss !== undefined && loss > skipAboveLoss) {
    await model.zeroGrad()
    return { loss, tokens, lr, gradNorm: 0, clipScale: 1, updateRms: 0, changedCodes: 0, skipped: 'loss' }
  }
  const stats = await optimizer.step({ lr, maxGradNorm, skipAboveNorm })
  return { loss, tokens, ...stats, skipped: stats.skipped ? 'norm' : undefined }
}

/** Adds up the gradients of the mean loss over all labels of the group, and returns that loss. */
async function sumGradients(
  model: Qwen3Nvfp4Model,
  group: readonly PreparedBatch[],
  options: OptimizerStepOptions,
): Promise<number> {
  const total = group.reduce((sum, { tokens }) => sum + tokens, 0)
  let mean = 0
  try {
    for (const { batch, tokens } of group) {
      const loss = await lossOf(model, batch, options)
      mean += (loss.value * tokens) / total
      await loss.backward({ scale: tokens / total })
    }
    return mean
  } catch (error) {
    await model.zeroGrad()
    throw error
  }
}

async function lossOf(
  model: Qwen3Nvfp4Model,
  batch: PreparedBatch['batch'],
  { recompute, teacher }: OptimizerStepOptions,
): Promise<Loss> {
  const { ids, labels, attentionMask, segments, shifted } = batch
  const layout = { attentionMask, segments }
  if (!teacher) return model.loss(ids, labels, { ...layout, shifted, recompute })
  await using taught = await teacher.forward(ids, { ...layout, logits: 'none', hiddenStates: true })
  const target = await taught.hiddenStates.at(-1)!.toFloat32Array()
  return model.hiddenLoss(ids, target, { ...layout, recompute })
}
