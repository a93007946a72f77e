import { EventEmitter } from 'node:events'
import type { PreparedBatch } from '../../types/training'
import { Qwen3Nvfp4Error } from '../errors'
import type { PackedAdamW } from '../model/packed-adamw'
import { version } from '../version'
import { BatchFeed } from './batch-feed'
import { CheckpointDirectory, type SavedCheckpoint } from './checkpoint-directory'
import { describeOrigins } from './describe-origins'
import { writeLossCurve } from './loss-curve'
import { budgetMessage, nvfp4Budget } from './nvfp4-budget'
import { type OptimizerStepStats, takeOptimizerStep } from './optimizer-step'
import { answerProbes, sharesOf } from './probes'
import { ProgressBar } from './progress-bar'
import { learningRate, planSchedule, type SchedulePlan } from './schedule'
import { saveTraining } from './saved-training'
import { type Settings, settingsOf } from './settings'
import { countSteps, resumeRun, type SavedState } from './start-run'
import { StopRequest } from './stop-request'
import { TrainLog } from './train-log'
import type {
  CheckpointEvent,
  EvalEvent,
  SampleEvent,
  StepEvent,
  StopReason,
  TrainerEvent,
  TrainerEvents,
  TrainResult,
  WarningCode,
  WarningEvent,
} from './trainer-events'
import type { TrainerOptions } from './trainer-options'
import { checkTrainerOptions, type TrainerPlan } from './trainer-plan'
import { TrainerState } from './trainer-state'
import { validationLoss } from './validation-loss'

const seconds = (since: number): number => (performance.now() - since) / 1000

/**
 * Trains a model on data: schedule, validation, probes, checkpoints that a run goes on from bit for bit, log and curve.
 * Every event goes to listeners (`on('step', …)`) and to `for await (const event of trainer)`, which runs it too.
 *
 * ```ts
 * await using trainer = new Trainer({ model, data, maxTokens: 1024, epochs: 3, lr: 5e-5, checkpointDir: 'run', resume: true })
 * trainer.on('step', ({ step, loss }) => console.log(step, loss))
 * await trainer.run()
 * ```
 */
export class Trainer extends EventEmitter<TrainerEvents> implements AsyncDisposable {
  readonly #plan: TrainerPlan
  readonly #state = new TrainerState()
  #optimizer: PackedAdamW | undefined
  #schedule: SchedulePlan | undefined
  #settings: Settings = {}
  #budget: number | undefined
  #stop: StopRequest | undefined
  #failure: unknown
  /** The last checkpoint that was written or gone on from. */
  #checkpoint: SavedCheckpoint | undefined

  // Of the run that is going on.
  #directory: CheckpointDirectory | undefined
  #log: TrainLog | undefined
  #progress: ProgressBar | undefined
  #tokens = 0

  constructor(options: TrainerOptions) {
    super()
    this.#plan = checkTrainerOptions(options)
  }

  /** Steps taken, those of the run that was resumed included. */
  get step(): number {
    return this.#state.step
  }

  /** The optimizer that trains; undefined before the first run unless one was given. */
  get optimizer(): PackedAdamW | undefined {
    return this.#optimizer
  }

  /** Steps of the whole run; undefined before it begins, and where only the end of the data will tell. */
  get totalSteps(): number | undefined {
    return this.#schedule?.steps || undefined
  }

  /**
   * Trains to the end, or until it is stopped. A run that was stopped, or that could not write a checkpoint, may be run
   * again and goes on where it was.
   */
  async run(): Promise<TrainResult> {
    const events = this[Symbol.asyncIterator]()
    for (;;) {
      const { done, value } = await events.next()
      if (done) return value
    }
  }

  /** Ends the run after the step that it is at, with a checkpoint. */
  stop(): void {
    this.#stop?.stop()
  }

  /** Runs; leaving the loop ends it at once, without a checkpoint. */
  async *[Symbol.asyncIterator](): AsyncGenerator<TrainerEvent, TrainResult, undefined> {
    if (this.#stop) throw new Qwen3Nvfp4Error('BUSY', 'the trainer is running already')
    if (this.#failure) throw this.#failure
    const { signal, handleSigint } = this.#plan
    using stop = new StopRequest(signal, handleSigint)
    this.#stop = stop
    const begin = performance.now()
    this.#tokens = 0
    try {
      yield* this.#open()
      const reason = yield* this.#train(stop)
      if (reason !== 'aborted' && reason !== 'interrupted') yield* this.#watch(true)
      if (this.#directory && this.#checkpoint?.step !== this.step) yield this.#tell(await this.#save(this.#directory))
      await this.#draw()
      const result = this.#result(reason, seconds(begin))
      yield this.#tell({ type: 'done', step: this.step, ...result })
      return result
    } finally {
      this.#stop = undefined
      await this.#close()
    }
  }

  /** Frees the optimizer that the trainer made. Again is harmless. */
  async dispose(): Promise<void> {
    if (typeof this.#plan.optimizer === 'function') await this.#optimizer?.dispose()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  /** Takes the files of the run; the first time also resumes. */
  async *#open(): AsyncGenerator<TrainerEvent> {
    const { checkpointDir, logFile, progress, optimizer, model, schedule } = this.#plan
    if (checkpointDir) this.#directory = await CheckpointDirectory.open(checkpointDir, version)
    if (!this.#schedule) {
      const planned = planSchedule(schedule, await countSteps(this.#plan))
      this.#optimizer ??= typeof optimizer === 'function' ? optimizer() : optimizer
      this.#settings = settingsOf(this.#plan, planned, this.#optimizer)
      const resumed = await resumeRun(this.#plan, this.#directory, this.#settings, this.#optimizer, this.#state)
      this.#checkpoint = resumed?.checkpoint
      this.#budget = await nvfp4Budget(model, this.#optimizer)
      this.#schedule = planned
      for (const path of resumed?.damaged ?? []) {
        yield this.#warn('damaged-checkpoint', `${path} is no whole checkpoint: the one before it was taken`)
      }
    }
    if (logFile) this.#log = await TrainLog.open(logFile)
    this.#log?.add({ type: 'start', step: this.step, library: version, settings: this.#settings })
    if (progress) this.#progress = await ProgressBar.start(this.step, this.#schedule.steps)
  }

  async #close(): Promise<void> {
    const [log, directory] = [this.#log, this.#directory]
    this.#progress?.stop()
    this.#progress = this.#log = this.#directory = undefined
    try {
      await log?.close()
    } finally {
      await directory?.close()
    }
  }

  async *#train(stop: StopRequest): AsyncGenerator<TrainerEvent, StopReason> {
    const { data, steps, epochs, accumulate, batches, checkpointEvery, earlyStop } = this.#plan
    const feed = new BatchFeed(data, { ...batches, epochs, from: this.#state.cursor })
    stop.onRequest = () => feed.close()
    let next: ReturnType<BatchFeed['take']> | undefined
    try {
      while (!stop.reason) {
        if (this.step >= (steps ?? Infinity)) return 'steps'
        const begin = performance.now()
        const group = await (next ?? feed.take(accumulate))
        if (!group) break
        if (group.length === 0) return 'epochs'
        const dataSeconds = seconds(begin)
        // Made while this step computes; what goes wrong in it is thrown where it is awaited.
        next = this.step + 1 < (steps ?? Infinity) ? feed.take(accumulate) : undefined
        next?.catch(() => {})
        const stats = await this.#step(group)
        yield this.#tell(this.#stepEvent(stats, group, seconds(begin), dataSeconds))
        yield* this.#warnings(group)
        yield* this.#watch(false)
        if (earlyStop && this.#state.best.state.worse >= earlyStop.patience) return 'early-stop'
        if (this.#directory && this.step % checkpointEvery === 0) yield this.#tell(await this.#save(this.#directory))
      }
      return stop.reason!
    } finally {
      feed.close()
    }
  }

  async #step(group: readonly PreparedBatch[]): Promise<OptimizerStepStats> {
    const { model, maxGradNorm, recompute, skipLossFactor, skipNormFactor, teacher, keepsGradients } = this.#plan
    const options = {
      ...{ lr: learningRate(this.#schedule!, this.step + 1), maxGradNorm, recompute, teacher, keepsGradients },
      skipAboveLoss: this.#state.recentLosses.limit(skipLossFactor),
      skipAboveNorm: this.#state.recentNorms.limit(skipNormFactor),
    }
    try {
      return await takeOptimizerStep(model, this.#optimizer!, group, options)
    } catch (error) {
      if (!(error instanceof Qwen3Nvfp4Error && error.code === 'NON_FINITE_GRADIENT')) throw error
      throw (this.#failure = this.#notFinite(error, group))
    }
  }

  #notFinite(cause: Qwen3Nvfp4Error, group: readonly PreparedBatch[]): Qwen3Nvfp4Error {
    const { cursor } = this.#state
    const samples = group.reduce((sum, batch) => sum + batch.samples, 0)
    const step = this.step + 1
    const origins = describeOrigins(group.flatMap((batch) => batch.origins ?? []))
    const message =
      `step ${step}: ${cause.message}. ` +
      `Its ${samples} samples follow sample ${cursor.sample} of epoch ${cursor.epoch}, in the order of that epoch` +
      `${origins && `: ${origins}`}. ` +
      (this.#checkpoint ? `The last good checkpoint is ${this.#checkpoint.path}` : 'There is no checkpoint')
    return new Qwen3Nvfp4Error('NON_FINITE_LOSS', message, {
      cause,
      file: this.#checkpoint?.path,
      key: cause.key,
      step,
    })
  }

  /** Counts the step, and says what it did. */
  #stepEvent(
    { loss, tokens, lr, gradNorm, clipScale, updateRms, changedCodes, skipped }: OptimizerStepStats,
    group: readonly PreparedBatch[],
    all: number,
    dataSeconds: number,
  ): StepEvent {
    const state = this.#state
    const { sampleCount } = this.#plan.data
    state.step++
    state.cursor = group.at(-1)!.cursor
    state.truncatedSamples += group.reduce((sum, batch) => sum + batch.truncated, 0)
    if (skipped) {
      state.skippedSteps++
    } else {
      state.lrSum += lr
      state.recentLosses.add(loss)
      state.recentNorms.add(gradNorm)
    }
    state.history.add(state.step, loss)
    this.#tokens += tokens
    const { step, cursor } = state
    const epoch = cursor.epoch + (sampleCount ? cursor.sample / sampleCount : 0)
    const what = { loss, tokens, lr, gradNorm, clipScale, updateRms, changedCodes }
    return { type: 'step', step, epoch, ...what, ...(skipped && { skipped }), seconds: all, dataSeconds, cursor }
  }

  *#warnings(group: readonly PreparedBatch[]): Generator<TrainerEvent> {
    const { lrSum, warned, truncatedSamples } = this.#state
    if (this.#budget !== undefined && lrSum > this.#budget && !warned.has('nvfp4-budget')) {
      yield this.#warn('nvfp4-budget', budgetMessage(this.#budget))
    }
    if (truncatedSamples > 0 && !warned.has('truncated-samples')) {
      const { maxTokens } = this.#plan.batches
      const now = group.reduce((sum, { truncated }) => sum + truncated, 0)
      const message = `${now} samples of this step are longer than ${maxTokens} tokens and lost the beginning of their prompts; the result counts them`
      yield this.#warn('truncated-samples', message)
    }
  }

  /** Validation and probes, when their step has come or, at the end, where they have not seen the last step. */
  async *#watch(atEnd: boolean): AsyncGenerator<TrainerEvent> {
    const { validation, evalEvery, probes, sampleEvery } = this.#plan
    const { step, evaluatedStep, sampledStep } = this.#state
    if (validation && evaluatedStep !== step && (atEnd || step % evalEvery === 0)) {
      yield this.#tell(await this.#evaluate())
    }
    if (probes.length > 0 && sampledStep !== step && (atEnd || step % sampleEvery === 0)) {
      yield this.#tell(await this.#sample())
    }
  }

  async #evaluate(): Promise<EvalEvent> {
    const { model, validation, batches, earlyStop } = this.#plan
    const begin = performance.now()
    const { step, best } = this.#state
    const { loss, tokens } = await validationLoss(model, validation!, batches)
    const isBest = best.add(step, loss, earlyStop?.minDelta)
    this.#state.evaluatedStep = step
    this.#state.validations.push({ step, loss })
    return { type: 'eval', step, loss, tokens, seconds: seconds(begin), best: best.state.best!, isBest }
  }

  async #sample(): Promise<SampleEvent> {
    const { model, tokenizer, probes, sampleTokens } = this.#plan
    const begin = performance.now()
    const answers = await answerProbes(model, tokenizer!, probes, sampleTokens)
    const { step } = this.#state
    this.#state.sampledStep = step
    return { type: 'sample', step, answers, shares: sharesOf(answers), seconds: seconds(begin) }
  }

  async #save(directory: CheckpointDirectory): Promise<CheckpointEvent> {
    const begin = performance.now()
    const { model, keep } = this.#plan
    const state: SavedState = { settings: this.#settings, progress: this.#state.saved }
    const saved = await directory.write(this.step, state, (folder) => saveTraining(folder, model, this.#optimizer!))
    this.#checkpoint = saved
    await directory.prune(keep)
    await this.#draw()
    const bytes = saved.files.reduce((sum, file) => sum + file.bytes, 0)
    return { type: 'checkpoint', step: saved.step, path: saved.path, bytes, seconds: seconds(begin) }
  }

  async #draw(): Promise<void> {
    const { lossCurve } = this.#plan
    const { history, validations } = this.#state
    if (lossCurve) await writeLossCurve(lossCurve, { training: history.points, validation: validations })
  }

  #result(reason: StopReason, took: number): TrainResult {
    const { step, recentLosses, best, skippedSteps, truncatedSamples } = this.#state
    const { best: loss, bestStep } = best.state
    return {
      reason,
      steps: step,
      loss: recentLosses.mean,
      ...(loss !== null && { best: { loss, step: bestStep } }),
      skippedSteps,
      truncatedSamples,
      tokens: this.#tokens,
      seconds: took,
      ...(this.#checkpoint && { checkpoint: this.#checkpoint.path }),
    }
  }

  #warn(code: WarningCode, message: string): WarningEvent {
    this.#state.warned.add(code)
    return this.#tell({ type: 'warning', step: this.step, code, message })
  }

  #tell<Event extends TrainerEvent>(event: Event): Event {
    this.#log?.add(event)
    this.#progress?.show(event)
    EventEmitter.prototype.emit.call(this, event.type, event)
    return event
  }
}
