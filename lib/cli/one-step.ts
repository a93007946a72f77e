/** `one-step`: one real step, and what memory held at each of its phases. */
import { Command } from 'commander'
import {
  type MemoryPhase,
  MemoryReport,
  type PackedAdamW,
  type Qwen3Nvfp4Model,
  selectTrainable,
  type TrainBatch,
} from 'qwen3-nvfp4'
import { addDataFlags, type DataFlags, openData } from './data-flags'
import { interruptible, usage } from './exit'
import { addModelFlags, type ModelFlags, openModel, openTokenizer } from './model-flags'
import { addOptimizerFlags, type OptimizerFlags, optimizerOptions, trainableSelection } from './optimizer-flags'
import { json, line, seconds, size, table } from './output'
import { flag, integer, number, pick, seed, text } from './values'

interface Flags extends ModelFlags, DataFlags, OptimizerFlags {
  sampleIndex: number
  maxTokens?: number
  batchSize: number
  pack?: boolean
  lr: number
  seed?: bigint
  fused?: boolean
  steps: number
  save?: string
  memoryReport?: string
  json?: boolean
}

export function oneStepCommand(): Command {
  const command = new Command('one-step')
    .summary('take one real step and say what memory held at its phases')
    .description(
      'take one real training step and say its loss, its time and what memory held after every phase; without --data on ' +
        'ids that are the same in every run',
    )
  addModelFlags(command, { tokenizer: true })
  addDataFlags(command)
  command
    .addOption(flag('--sample-index <n>', 'the sample of --data to begin with, 0 or more', integer(0)).default(0))
    .optionsGroup('Step:')
    .addOption(flag('--max-tokens <n>', 'tokens of a row, 2 or more (default: 8, with --data 1024)', integer(2)))
    .addOption(flag('--batch-size <n>', 'rows, 1 or more', integer(1)).default(1))
    .addOption(flag('--pack', 'put several samples into a row'))
    .addOption(flag('--lr <x>', 'learning rate, 0 or more', number({ min: 0 })).default(1e-5))
    .addOption(flag('--seed <n>', 'seed of stochastic rounding, 0 to 2^64 - 1 (default: 0)', seed))
    .addOption(flag('--fused', 'backward and update in one job (trainStep), so that no gradient is kept'))
    .addOption(flag('--steps <n>', 'take this many steps on the same batch, 1 or more', integer(1)).default(1))
  addOptimizerFlags(command)
  return command
    .optionsGroup('Output:')
    .addOption(flag('--memory-report <path>', 'write the report as JSON (default: none)', text))
    .addOption(flag('--save <path>', 'write the model after the step as .dat (default: none)', text))
    .addOption(flag('--json', 'steps and report as one JSON object'))
    .action((flags: Flags) => interruptible((signal) => run(flags, signal)))
}

interface Step {
  loss: number
  tokens: number
  gradNorm: number
  updateRms: number
  changedCodes: number
  forwardSeconds?: number
  backwardSeconds?: number
  optimizerSeconds?: number
  totalSeconds: number
}

async function run(flags: Flags, signal: AbortSignal): Promise<void> {
  await using model = await openModel(flags, signal)
  const report = new MemoryReport(model)
  await report.record('model_loaded')
  const batch = await readBatch(model, flags, signal)
  await using optimizer = model.createOptimizer({
    ...optimizerOptions(flags),
    ...pick(flags, ['lr', 'weightDecay', 'seed']),
    decayNorms: flags.decayNorms ?? false,
    trainable: selectTrainable(trainableSelection(flags), model.config),
  })
  const stateBytes = await optimizer.stateBytes()
  await report.record('state_initialized')
  const steps: Step[] = []
  for (let i = 0; i < flags.steps; i++) {
    steps.push(await (flags.fused ? fusedStep : stepByPhases)(model, optimizer, batch, report, flags, signal))
  }
  if (flags.memoryReport !== undefined) await report.save(flags.memoryReport)
  if (flags.save !== undefined) await model.saveDat(flags.save)
  if (flags.json) return json({ steps, stateBytes, memory: report })
  for (const step of steps) show(step)
  line(`\n${memoryTable(report.phases)}`)
}

/** The first batch from --sample-index on; without data ids that are spread over the vocabulary. */
async function readBatch(model: Qwen3Nvfp4Model, flags: Flags, signal: AbortSignal): Promise<TrainBatch> {
  const { vocabSize } = model.config
  const { batchSize, sampleIndex, pack } = flags
  if (!flags.data) {
    const T = flags.maxTokens ?? 8
    const ids = Array.from({ length: batchSize }, (_, row) =>
      Array.from({ length: T }, (_, t) => ((row * T + t + 1) * 7919) % vocabSize),
    )
    return { ids, labels: ids }
  }
  const data = await openData(flags, await openTokenizer(flags), signal)
  if (data.sampleCount !== undefined && sampleIndex >= data.sampleCount) {
    throw usage(`Expected fewer than ${data.sampleCount} for --sample-index but received ${sampleIndex}`)
  }
  const maxTokens = flags.maxTokens ?? 1024
  const from = { epoch: 0, sample: sampleIndex }
  const options = { batchSize, maxTokens, from, vocabSize, signal, shuffle: false, truncate: true, lookAhead: 0 }
  for await (const { batch } of data.batches({ ...options, ...(pack && { pack }) })) return batch
  throw usage('Expected --data with at least one sample')
}

async function stepByPhases(
  model: Qwen3Nvfp4Model,
  optimizer: PackedAdamW,
  { ids, labels, ...options }: TrainBatch,
  report: MemoryReport,
  flags: Flags,
  signal: AbortSignal,
): Promise<Step> {
  const times = [performance.now()]
  const loss = await model.loss(ids, labels, { ...options, ...pick(flags, ['recompute']), signal })
  times.push(performance.now())
  await report.record('forward_done')
  times.push(performance.now())
  await loss.backward({ signal })
  times.push(performance.now())
  await report.record('backward_done')
  times.push(performance.now())
  const { gradNorm, updateRms, changedCodes } = await optimizer.step({ ...clipping(flags), signal })
  times.push(performance.now())
  await report.record('optimizer_step_done')
  const between = (i: number) => seconds(times[i + 1]! - times[i]!)
  const [forwardSeconds, backwardSeconds, optimizerSeconds] = [between(0), between(2), between(4)]
  return {
    ...{ loss: loss.value, tokens: loss.tokens, gradNorm, updateRms, changedCodes },
    ...{ forwardSeconds, backwardSeconds, optimizerSeconds },
    totalSeconds: forwardSeconds + backwardSeconds + optimizerSeconds,
  }
}

async function fusedStep(
  _: Qwen3Nvfp4Model,
  optimizer: PackedAdamW,
  batch: TrainBatch,
  report: MemoryReport,
  flags: Flags,
  signal: AbortSignal,
): Promise<Step> {
  const begin = performance.now()
  const options = { ...clipping(flags), ...pick(flags, ['recompute']), signal }
  const { loss, tokens, gradNorm, updateRms, changedCodes } = await optimizer.trainStep(batch, options)
  const totalSeconds = seconds(performance.now() - begin)
  await report.record('optimizer_step_done')
  return { loss, tokens, gradNorm, updateRms, changedCodes, totalSeconds }
}

const clipping = ({ maxGradNorm = 1 }: Flags) => (maxGradNorm === Infinity ? {} : { maxGradNorm })

function show(step: Step): void {
  const { loss, tokens, gradNorm, updateRms, changedCodes, totalSeconds } = step
  const parts =
    step.forwardSeconds === undefined
      ? ''
      : ` (forward ${step.forwardSeconds}, backward ${step.backwardSeconds}, optimizer ${step.optimizerSeconds})`
  line(`loss ${loss.toFixed(6)} over ${tokens} labels, gradient norm ${gradNorm.toPrecision(6)}`)
  line(
    `update rms ${updateRms.toPrecision(4)}, codes changed ${(100 * changedCodes).toFixed(3)} %, ${totalSeconds} s${parts}`,
  )
}

function memoryTable(phases: readonly MemoryPhase[]): string {
  const kinds = ['weights', 'scales', 'moments', 'gradients', 'activations', 'scratch', 'total', 'peak'] as const
  const rows = phases.map(({ phase, arena, gpu, processBytes, host }) => [
    phase,
    ...kinds.map((kind) => size(arena[kind])),
    gpu ? size(gpu.totalBytes - gpu.freeBytes) : '-',
    size(processBytes),
    host ? size(host.availableBytes) : '-',
  ])
  return table([['phase', ...kinds, 'GPU in use', 'process', 'host free'], ...rows])
}
