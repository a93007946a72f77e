import type { DataCursor } from '../../types/training'
import { BestLoss, type EarlyStopState } from './early-stop'
import { LossHistory, type LossHistoryState } from './loss-history'
import { RecentMean } from './outliers'
import type { WarningCode } from './trainer-events'

export interface StepLoss {
  step: number
  loss: number
}

/** What is saved of a run besides the model and its optimizer. */
export interface SavedProgress {
  step: number
  cursor: DataCursor
  lrSum: number
  skippedSteps: number
  truncatedSamples: number
  evaluatedStep: number
  sampledStep: number
  recentLosses: readonly number[]
  recentNorms: readonly number[]
  best: EarlyStopState
  history: LossHistoryState
  validations: StepLoss[]
  warned: WarningCode[]
}

/** How far a run has come. */
export class TrainerState {
  step = 0
  cursor: DataCursor = { epoch: 0, sample: 0 }
  /** Of the learning rates of the steps that updated something. */
  lrSum = 0
  skippedSteps = 0
  truncatedSamples = 0
  /** Steps of the last validation and of the last answers to probes. */
  evaluatedStep = 0
  sampledStep = 0
  readonly recentLosses = new RecentMean()
  readonly recentNorms = new RecentMean()
  readonly best = new BestLoss()
  readonly history = new LossHistory()
  validations: StepLoss[] = []
  /** Warnings that are given once a run. */
  readonly warned = new Set<WarningCode>()

  get saved(): SavedProgress {
    const { step, cursor, lrSum, skippedSteps, truncatedSamples, evaluatedStep, sampledStep, validations } = this
    return {
      ...{ step, cursor, lrSum, skippedSteps, truncatedSamples, evaluatedStep, sampledStep, validations },
      recentLosses: this.recentLosses.state,
      recentNorms: this.recentNorms.state,
      best: this.best.state,
      history: this.history.state,
      warned: [...this.warned],
    }
  }

  set saved({ recentLosses, recentNorms, best, history, warned, ...counters }: SavedProgress) {
    Object.assign(this, counters)
    this.recentLosses.state = recentLosses
    this.recentNorms.state = recentNorms
    this.best.state = best
    this.history.state = history
    this.warned.clear()
    for (const code of warned) this.warned.add(code)
  }
}
