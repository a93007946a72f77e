import type { LossOptions, StepStats } from '../../types/options'
import type { PreparedBatch } from '../../types/training'
import { Qwen3Nvfp4Error } from '../errors'
import type { PackedAdamW } from '../model/packed-adamw'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'

export interface OptimizerStepOptions {
  lr: number
  maxGradNorm?: number
  recompute?: LossOptions['recompute']
  /** Leave the step out when its loss is above this. */
  skipAboveLoss?: number
}

export interface OptimizerStepStats extends Omit<StepStats, 'step' | 'skipped'> {
  loss: number
  tokens: number
  skipped?: 'loss'
}

/**
 * One step on one batch, fused, or on several, whose gradients are summed so that every counted label weighs the same.
 * A loss that is not finite ends it with NON_FINITE_GRADIENT before anything is updated.
 */
export async function takeOptimizerStep(
  model: Qwen3Nvfp4Model,
  optimizer: PackedAdamW,
  group: readonly PreparedBatch[],
  options: OptimizerStepOptions,
): Promise<OptimizerStepStats> {
  const { lr, maxGradNorm, skipAboveLoss } = options
  if (group.length === 1) {
    const { skipped, ...stats } = await optimizer.trainStep(group[0]!.batch, options)
    return { ...stats, ...(skipped && { skipped: 'loss' as const }) }
  }
  const loss = await sumGradients(model, group, options)
  const tokens = group.reduce((sum, batch) => sum + batch.tokens, 0)
  if (skipAboveLoss !== undefined && loss > skipAboveLoss) {
    await model.zeroGrad()
    return { loss, tokens, lr, gradNorm: 0, clipScale: 1, updateRms: 0, changedCodes: 0, skipped: 'loss' }
  }
  const { skipped: _, ...stats } = await optimizer.step({ lr, maxGradNorm })
  return { loss, tokens, ...stats }
}

/** Adds up the gradients of the mean loss over all labels of the group, and returns that loss. */
async function sumGradients(
  model: Qwen3Nvfp4Model,
  group: readonly PreparedBatch[],
  { recompute }: OptimizerStepOptions,
): Promise<number> {
  const total = group.reduce((sum, { tokens }) => sum + tokens, 0)
  let mean = 0
  try {
    for (const { batch, tokens } of group) {
      const { ids, labels, ...layout } = batch
      const loss = await model.loss(ids, labels, { ...layout, recompute })
      mean += (loss.value * tokens) / total
      if (!Number.isFinite(loss.value)) {
        await loss.dispose()
        throw new Qwen3Nvfp4Error('NON_FINITE_GRADIENT', `the loss is ${loss.value}: nothing was updated`)
      }
      await loss.backward({ scale: tokens / total })
    }
    return mean
  } catch (error) {
    await model.zeroGrad()
    throw error
  }
}
