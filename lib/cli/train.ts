/** `train`: a Trainer from the shell. */
import { readFile } from 'node:fs/promises'
import { Command } from 'commander'
import {
  type DoneEvent,
  MemoryGuard,
  MemoryReport,
  type Probe,
  type ProbeAnswer,
  Qwen3Nvfp4Model,
  type Tokenizer,
  Trainer,
  type TrainerEvent,
  type TrainerOptions,
} from 'qwen3-nvfp4'
import { openData, openDataFile } from './data-flags'
import { interruptible, usage } from './exit'
import { openModel, openTokenizer } from './model-flags'
import { optimizerOptions, trainableSelection } from './optimizer-flags'
import { json, line, note, warn } from './output'
import { addTrainFlags, type TrainFlags } from './train-flags'
import { pick } from './values'

export function trainCommand(): Command {
  const command = new Command('train')
    .summary('train a model on data, with checkpoints')
    .description(
      'train a model on data, with checkpoints that a run goes on from bit for bit. SIGINT and SIGTERM stop after the step, ' +
        'with a checkpoint where --checkpoint-dir is given',
    )
  return addTrainFlags(command).action((flags: TrainFlags) => interruptible((signal) => run(flags, signal)))
}

async function run(flags: TrainFlags, signal: AbortSignal): Promise<void> {
  const { resume, checkpointDir, probesFrom } = flags
  if (resume === true && checkpointDir === undefined) throw usage('Expected --checkpoint-dir with --resume')
  const probes = [
    ...(flags.probe ?? []).map((prompt) => ({ prompt })),
    ...(probesFrom ? await readProbes(probesFrom) : []),
  ]
  const tokenizer = await openTokenizer(flags)
  // Without the signal: a run that is stopped still ends its step, in order.
  const data = await openData(flags, tokenizer)
  const validation = flags.validation === undefined ? undefined : await openDataFile(flags.validation, flags, tokenizer)
  await using model = await openModel(flags, signal)
  const { teacher: teacherPath, threads } = flags
  const on = { device: model.device, ...(threads !== undefined && { threads }), signal }
  await using teacher = teacherPath === undefined ? undefined : await Qwen3Nvfp4Model.load(teacherPath, on)
  const report = new MemoryReport(model)
  await report.record('model_loaded')
  using guard = await startGuard(flags, model)
  const stop = guard ? AbortSignal.any([signal, guard.signal]) : signal
  await using trainer = new Trainer({
    ...trainerOptions(flags, model, tokenizer),
    ...(probes.length > 0 && { probes }),
    ...(validation && { validation }),
    ...(teacher && { teacher, loss: 'hidden-l1' }),
    data,
    signal: stop,
  })
  const result = await follow(trainer, flags, report)
  if (flags.memoryReport !== undefined) await report.save(flags.memoryReport)
  // Its own exit code, once the checkpoint has been written.
  guard?.signal.throwIfAborted()
  if (flags.out === undefined || result?.reason === 'aborted') return
  const { bytes } = await model.saveDat(flags.out)
  note(`${flags.out}: ${bytes} bytes`)
}

function trainerOptions(flags: TrainFlags, model: Qwen3Nvfp4Model, tokenizer: Tokenizer): Omit<TrainerOptions, 'data'> {
  const { patience, minDelta } = flags
  if (minDelta !== undefined && patience === undefined) throw usage('Expected --patience with --min-delta')
  return {
    model,
    tokenizer,
    maxTokens: flags.maxTokens,
    ...pick(flags, ['steps', 'epochs', 'accumulate', 'seed', 'batchSize', 'pack', 'truncate']),
    ...pick(flags, ['lr', 'schedule', 'warmupSteps', 'minLr', 'decaySteps', 'weightDecay', 'decayNorms']),
    ...pick(flags, [
      'maxGradNorm',
      'skipLossFactor',
      'skipNormFactor',
      'recompute',
      'evalEvery',
      'sampleEvery',
      'sampleTokens',
    ]),
    ...pick(flags, ['checkpointDir', 'checkpointEvery', 'keep', 'resume', 'allowChanged', 'logFile', 'lossCurve']),
    ...(!flags.shuffle && { shuffle: false }),
    ...(patience !== undefined && { earlyStop: { patience, ...pick(flags, ['minDelta']) } }),
    optimizer: optimizerOptions(flags),
    trainable: trainableSelection(flags),
    progress: process.stderr.isTTY === true && !flags.json,
  }
}

async function readProbes(path: string): Promise<Probe[]> {
  return JSON.parse(await readFile(path, 'utf8')) as Probe[]
}

async function startGuard(flags: TrainFlags, { device }: Qwen3Nvfp4Model): Promise<MemoryGuard | undefined> {
  const { gpuLimitGb, hostLimitGb, overSecs } = flags
  if (gpuLimitGb === undefined && hostLimitGb === undefined) return undefined
  if (gpuLimitGb !== undefined && device === 'cpu') throw usage('Expected a GPU for --device with --gpu-limit-gb')
  const guard = new MemoryGuard({
    ...(gpuLimitGb !== undefined && { gpuLimitBytes: gpuLimitGb * 2 ** 30, device }),
    ...(hostLimitGb !== undefined && { hostLimitBytes: hostLimitGb * 2 ** 30 }),
    ...(overSecs !== undefined && { overSeconds: overSecs }),
  })
  guard.on('warn', (error) => warn(`warning: ${error.message}`))
  await guard.start()
  return guard
}

/** Runs it and prints what happens; how it ended. */
async function follow(trainer: Trainer, flags: TrainFlags, report: MemoryReport): Promise<DoneEvent | undefined> {
  let isFirst = true
  let done: DoneEvent | undefined
  for await (const event of trainer) {
    if (flags.json) json(event)
    else show(event, flags.logEvery)
    if (event.type === 'done') done = event
    if (event.type === 'step' && isFirst) await report.record('optimizer_step_done')
    isFirst &&= event.type !== 'step'
  }
  await report.record('training_done')
  return done
}

function show(event: TrainerEvent, logEvery = Infinity): void {
  switch (event.type) {
    case 'step': {
      const { step, loss, lr, gradNorm, tokens, seconds, skipped } = event
      if (step % logEvery !== 0) return
      const rate = `${(tokens / seconds).toFixed(0)} tokens/s`
      const left = skipped ? `  left out for its ${skipped}` : ''
      return line(
        `step ${step}  loss ${loss.toFixed(4)}  lr ${lr.toExponential(2)}  norm ${gradNorm.toPrecision(4)}  ${rate}${left}`,
      )
    }
    case 'eval':
      return line(`step ${event.step}  validation ${event.loss.toFixed(4)}${event.isBest ? '  the best so far' : ''}`)
    case 'sample': {
      for (const answer of event.answers) line(`step ${event.step}  ${describe(answer)}`)
      for (const [group, share] of Object.entries(event.shares))
        line(`step ${event.step}  ${group}: ${(100 * share).toFixed(1)} % hold`)
      return
    }
    case 'checkpoint':
      return line(`step ${event.step}  checkpoint ${event.path}, ${event.bytes} bytes in ${event.seconds.toFixed(2)} s`)
    case 'warning':
      return warn(`warning: ${event.message}`)
    case 'done': {
      const { reason, steps, loss, tokens, seconds, skippedSteps } = event
      const skipped = skippedSteps > 0 ? `, ${skippedSteps} left out` : ''
      return line(
        `done (${reason}): ${steps} steps${skipped}, loss ${loss.toFixed(4)}, ${tokens} labels in ${seconds.toFixed(1)} s`,
      )
    }
  }
}

function describe({ prompt, text, holds }: ProbeAnswer): string {
  const question = typeof prompt === 'string' ? prompt : prompt.at(-1)!.content
  const verdict = holds === undefined ? '' : holds ? '  holds' : '  does not hold'
  return `${JSON.stringify(question)} → ${JSON.stringify(text)}${verdict}`
}
