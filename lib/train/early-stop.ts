import { checkInteger, checkNumber, checkOptions } from '../check'

export interface EarlyStopOptions {
  /** Evaluations in a row without a better validation loss after which training stops, 1 or more. */
  patience: number
  /** By how much a loss must be lower to be better, 0 or more. Default: 0. */
  minDelta?: number
}

/** What is saved of it. */
export interface EarlyStopState {
  /** Lowest validation loss so far, and its step; null before the first. */
  best: number | null
  bestStep: number
  /** Evaluations since. */
  worse: number
}

export function checkEarlyStop(options: EarlyStopOptions): Required<EarlyStopOptions> {
  const { patience, minDelta } = checkOptions(options, 'earlyStop', ['patience', 'minDelta'])
  return {
    patience: checkInteger('earlyStop.patience', patience, 1),
    minDelta: checkNumber('earlyStop.minDelta', minDelta ?? 0, { min: 0 }),
  }
}

/** Follows the validation loss. */
export class BestLoss {
  state: EarlyStopState = { best: null, bestStep: 0, worse: 0 }

  /** Whether this loss is the best so far by more than `minDelta`. */
  add(step: number, loss: number, minDelta = 0): boolean {
    const { best, bestStep, worse } = this.state
    const isBetter = best === null || loss < best - minDelta
    this.state = isBetter ? { best: loss, bestStep: step, worse: 0 } : { best, bestStep, worse: worse + 1 }
    return isBetter
  }
}
