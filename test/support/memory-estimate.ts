/** What tests of estimateMemory share, on whatever device. */
import type { MemoryEstimate, PackedAdamW, Qwen3Nvfp4Model } from 'qwen3-nvfp4'

export function expectWithin5Percent(measured: number, expected: number): void {
  expect(Math.abs(measured / expected - 1)).toBeLessThan(0.05)
}

/** Takes steps with kept gradients, the second time with what the first has left, and holds the peak since then to the estimate. */
export async function expectKeptGradients(
  model: Qwen3Nvfp4Model,
  optimizer: PackedAdamW,
  ids: number[][],
  gradients: 'fp32' | 'bf16' | 'nvfp4',
  expected: MemoryEstimate,
): Promise<void> {
  model.resetMemoryPeak()
  for (let i = 0; i < 2; i++) {
    for (let batch = 0; batch < 2; batch++) {
      await using loss = await model.loss(ids, ids)
      await loss.backward({ gradients })
      expect((await model.memory()).model.gradients).toBe(expected.gradients)
    }
    await optimizer.step({ maxGradNorm: 1 })
  }
  expectWithin5Percent((await model.memory()).peak, expected.total)
}
