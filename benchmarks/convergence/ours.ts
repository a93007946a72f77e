/** One run of our trainer: `tsx ours.ts FOLDER DEVICE RUN`, RUN as JSON. Prints a line of JSON every REPORT steps and at the end. */
import { type PackedAdamW, Qwen3Nvfp4Model, type TrainBatch } from 'qwen3-nvfp4'
import { Batches, rate } from './batches'
import type { Run } from './runs'

const REPORT = 100
const HELD_OUT_BATCHES = 8

const [folder, device, json] = process.argv.slice(2) as [string, string, string]
const run = JSON.parse(json) as Run
const print = (line: object): void => console.log(JSON.stringify(line))
const mean = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0) / numbers.length

async function heldOutLoss(model: Qwen3Nvfp4Model, batches: Batches): Promise<number> {
  const losses: number[] = []
  for (let i = 0; i < batches.length; i++) {
    const { ids, labels } = batches.at(i)
    await using loss = await model.loss(ids, labels, { shifted: true })
    losses.push(loss.value)
  }
  return mean(losses)
}

async function trainStep(model: Qwen3Nvfp4Model, optimizer: PackedAdamW, batch: TrainBatch, lr: number) {
  const options = { lr, maxGradNorm: 1 }
  if (run.clip !== 'exact') return optimizer.trainStep(batch, { ...options, recompute: 'none' })
  const { ids, labels, shifted } = batch
  const loss = await model.loss(ids, labels, { shifted, recompute: 'none' })
  await loss.backward()
  return { loss: loss.value, ...(await optimizer.step(options)) }
}

async function main(): Promise<void> {
  await using model = await Qwen3Nvfp4Model.load(`${folder}/${run.from}`, { device, ...run.load })
  await using optimizer = model.createOptimizer({
    betas: run.betas,
    weightDecay: run.weightDecay,
    seed: run.seed,
    ...run.optimizer,
  })
  const batches = Batches.train(folder, run)
  const heldOut = Batches.heldOut(folder, run, HELD_OUT_BATCHES)
  const before = await heldOutLoss(model, heldOut)
  const losses: number[] = []
  let seconds = 0
  for (let step = 0; step < run.steps; step++) {
    const batch = { ...batches.at(step), shifted: true }
    const start = performance.now()
    const { loss, updateRms, changedCodes, gradNorm } = await trainStep(model, optimizer, batch, rate(run, step))
    seconds += (performance.now() - start) / 1000
    losses.push(loss)
    const last = step + 1 === run.steps
    if ((step + 1) % REPORT !== 0 && !last) continue
    print({
      step: step + 1,
      loss: mean(losses.slice(-REPORT)),
      updateRms,
      changedCodes,
      gradNorm,
      msPerStep: (1000 * seconds) / (step + 1),
      heldOut: await heldOutLoss(model, heldOut),
      ...(last ? { final: true, first: losses[0], before } : {}),
    })
  }
}

main().catch((error: unknown) => {
  print({ error: error instanceof Error ? error.message : String(error) })
  process.exitCode = 1
})
