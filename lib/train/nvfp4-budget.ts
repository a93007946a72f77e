import type { PackedAdamW } from '../model/packed-adamw'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'

/** docs/numerics.md, "How far pure NVFP4 weights carry". */
const budgetShare = 0.17

/**
 * The sum of learning rates that weights with nothing behind their codes carry, before the random walk of their
 * rounding costs more than they learn; undefined where that is no concern. It is a share of the weights' standard
 * deviation, which one matrix in the middle of the model stands for.
 */
export async function nvfp4Budget(model: Qwen3Nvfp4Model, optimizer: PackedAdamW): Promise<number | undefined> {
  const { weights, trainable } = optimizer.plan.native
  if (weights !== 'nvfp4') return undefined
  const trained = new Set(trainable)
  const packed = [...model.parameters()].filter(({ name, storage }) => storage === 'nvfp4' && trained.has(name))
  const middle = packed[packed.length >> 1]
  if (!middle) return undefined
  const values = await middle.read()
  // Some tens of thousands of them say it; an odd distance meets every column.
  const distance = (values.length >> 16) | 1
  let [squares, count] = [0, 0]
  for (let i = 0; i < values.length; i += distance, count++) squares += values[i]! ** 2
  return budgetShare * Math.sqrt(squares / count)
}

export const budgetMessage = (budget: number): string =>
  `the learning rates of all steps add up to more than ${budget.toPrecision(2)}, as far as weights in NVFP4 alone carry: ` +
  "from here on their rounding costs more than they learn; use weights 'nvfp4+residual', or a lower rate"
