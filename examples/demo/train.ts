/** The training loop of both runs: a learning-rate schedule, one fused step a batch, and a progress bar. */
import { SingleBar } from 'cli-progress'
import type { PackedAdamW, Qwen3Nvfp4Model, TrainBatch } from 'qwen3-nvfp4'
import type { RunSettings } from './settings'

/** Rises over the warm-up and falls along half a cosine to a twentieth of the largest rate. */
export function learningRate(step: number, { steps, warmupSteps, lr }: RunSettings): number {
  const warmup = Math.min(1, (step + 1) / warmupSteps)
  const cosine = 0.5 * (1 + Math.cos((Math.PI * step) / steps))
  return lr * warmup * (0.05 + 0.95 * cosine)
}

export interface TrainSummary {
  steps: number
  /** Running mean of the last steps' losses, in nats. */
  loss: number
  seconds: number
  tokensPerSecond: number
}

/** Trains until `settings.steps`, or until `isDone`, asked after every step, says so. */
export async function train(
  model: Qwen3Nvfp4Model,
  optimizer: PackedAdamW,
  settings: RunSettings,
  nextBatch: () => TrainBatch,
  isDone: (step: number) => Promise<boolean> = async () => false,
): Promise<TrainSummary> {
  const bar = new SingleBar({
    format: '  {bar} {value}/{total}  loss {loss}  {speed} tokens/s  {memory}  {duration_formatted}',
    barsize: 24,
    fps: 5,
    noTTYOutput: true,
    notTTYSchedule: 10_000,
    linewrap: null,
  })
  const tokensPerStep = (settings.textRows + settings.chatRows) * settings.tokens
  const begin = performance.now()
  let [step, loss, tokensPerSecond] = [0, NaN, 0]
  bar.start(settings.steps, 0, { loss: '-', speed: '-', memory: '-' })
  try {
    while (step < settings.steps) {
      const lr = learningRate(step, settings)
      const stats = await optimizer.trainStep(nextBatch(), { lr, maxGradNorm: settings.maxGradNorm })
      step++
      loss = Number.isNaN(loss) ? stats.loss : loss + (stats.loss - loss) / Math.min(step, 30)
      tokensPerSecond = (step * tokensPerStep) / ((performance.now() - begin) / 1000)
      const { peak } = await model.memory()
      bar.update(step, { loss: loss.toFixed(3), speed: tokensPerSecond.toFixed(0), memory: mebibytes(peak) })
      if (await isDone(step)) break
    }
  } finally {
    bar.stop()
  }
  return { steps: step, loss, seconds: (performance.now() - begin) / 1000, tokensPerSecond }
}

export const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`
