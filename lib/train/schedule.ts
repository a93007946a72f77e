import { checkInteger, checkNumber, checkOneOf, wrongValue } from '../check'

export type ScheduleName = 'cosine' | 'linear' | 'constant' | 'wsd'

const scheduleNames: readonly ScheduleName[] = ['cosine', 'linear', 'constant', 'wsd']

export interface ScheduleOptions {
  /** Largest learning rate, 0 or more. Default: 1e-4. */
  lr?: number
  /**
   * How the rate falls after the warm-up: along half a cosine, along a line, not at all, or, with 'wsd'
   * (warm-up, stable, decay), along a line over the last `decaySteps` alone. Default: 'cosine'.
   */
  schedule?: ScheduleName
  /** Steps over which the rate rises from lr / warmupSteps to lr, 0 or more. Default: 0. */
  warmupSteps?: number
  /** What the rate falls towards, 0 to lr. The last step's is just above it. Default: 0. */
  minLr?: number
  /** With 'wsd': steps of the fall, 1 or more. Default: a fifth of all steps. */
  decaySteps?: number
}

/** A schedule whose every number is known. */
export interface SchedulePlan {
  schedule: ScheduleName
  lr: number
  minLr: number
  warmupSteps: number
  /** 0 unless 'wsd'. */
  decaySteps: number
  /** Steps in all; 0 when 'constant' runs without an end that is known. */
  steps: number
}

/** `steps` is undefined when nobody knows how many there will be, which 'constant' alone can do without. */
export function planSchedule(given: ScheduleOptions, steps: number | undefined): SchedulePlan {
  const schedule = checkOneOf('schedule', given.schedule ?? 'cosine', scheduleNames)
  const lr = checkNumber('lr', given.lr ?? 1e-4, { min: 0 })
  const minLr = checkNumber('minLr', given.minLr ?? 0, { min: 0, max: lr })
  const warmupSteps = checkInteger('warmupSteps', given.warmupSteps ?? 0, 0)
  if (given.decaySteps !== undefined) {
    checkInteger('decaySteps', given.decaySteps, 1)
    if (schedule !== 'wsd') throw wrongValue(`nothing with schedule '${schedule}'`, 'decaySteps', given.decaySteps)
  }
  if (steps === undefined && schedule !== 'constant') {
    throw wrongValue(
      `a number of steps with schedule '${schedule}', whose data does not say how long it is`,
      'steps',
      steps,
    )
  }
  const total = steps ?? 0
  const decaySteps = schedule === 'wsd' ? (given.decaySteps ?? Math.max(1, Math.round(total / 5))) : 0
  if (steps !== undefined && warmupSteps + decaySteps > steps) {
    const sum = decaySteps > 0 ? 'warmupSteps + decaySteps' : 'warmupSteps'
    throw wrongValue(`at most the ${steps} steps of the run`, sum, warmupSteps + decaySteps)
  }
  return { schedule, lr, minLr, warmupSteps, decaySteps, steps: total }
}

/** The rate of a step, counted from 1. */
export function learningRate(plan: SchedulePlan, step: number): number {
  const { schedule, lr, minLr, warmupSteps, decaySteps, steps } = plan
  if (step <= warmupSteps) return (lr * step) / warmupSteps
  if (schedule === 'constant') return lr
  const begin = schedule === 'wsd' ? steps - decaySteps : warmupSteps
  const progress = Math.min(1, Math.max(0, (step - 1 - begin) / Math.max(1, steps - begin)))
  const share = schedule === 'cosine' ? 0.5 * (1 + Math.cos(Math.PI * progress)) : 1 - progress
  return minLr + (lr - minLr) * share
}
