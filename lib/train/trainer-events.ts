/** What a Trainer tells while it runs. */
import type { DataCursor } from '../../types/training'
import type { ProbeAnswer } from './probes'

/** Why training ended. */
export type StopReason = 'steps' | 'epochs' | 'early-stop' | 'aborted' | 'interrupted'

export interface StepEvent {
  type: 'step'
  /** Steps taken, this one included; those that were skipped count too. */
  step: number
  /** Epochs, as a fraction where the length of the data is known. */
  epoch: number
  /** Mean loss over the counted labels, before the update. */
  loss: number
  /** Labels that counted. */
  tokens: number
  lr: number
  gradNorm: number
  clipScale: number
  /** Root mean square of the Adam direction; see StepStats. */
  updateRms: number
  changedCodes: number
  /** What was out of range when the step was left out: nothing was updated then. */
  skipped?: 'loss' | 'norm'
  /** Wall-clock seconds of the step. */
  seconds: number
  /** Of these, seconds that were spent waiting for data. */
  dataSeconds: number
  /** Where to go on in the data after this step. */
  cursor: DataCursor
}

export interface EvalEvent {
  type: 'eval'
  step: number
  /** Mean loss over all labels of the validation set. */
  loss: number
  tokens: number
  seconds: number
  /** Lowest loss of a validation so far, this one included. */
  best: number
  isBest: boolean
}

export interface SampleEvent {
  type: 'sample'
  step: number
  answers: ProbeAnswer[]
  /** Of each group of probes, the share of the judged answers that hold; empty when nothing is judged. */
  shares: Record<string, number>
  seconds: number
}

export interface CheckpointEvent {
  type: 'checkpoint'
  step: number
  path: string
  bytes: number
  /** How long training stood still for it. */
  seconds: number
}

export type WarningCode = 'nvfp4-budget' | 'truncated-samples' | 'damaged-checkpoint'

export interface WarningEvent {
  type: 'warning'
  step: number
  code: WarningCode
  message: string
}

export interface TrainResult {
  reason: StopReason
  /** Steps taken in all, those of earlier runs included. */
  steps: number
  /** Mean loss of the last 32 steps that were not skipped; NaN when there is none. */
  loss: number
  /** Lowest validation loss and its step. */
  best?: { loss: number; step: number }
  skippedSteps: number
  /** Samples that were cut, with `truncate`. */
  truncatedSamples: number
  /** Counted labels and seconds of this run. */
  tokens: number
  seconds: number
  /** The last checkpoint, where some are written. */
  checkpoint?: string
}

export interface DoneEvent extends TrainResult {
  type: 'done'
  step: number
}

export type TrainerEvent = StepEvent | EvalEvent | SampleEvent | CheckpointEvent | WarningEvent | DoneEvent

/** Of a Trainer as an EventEmitter: each event is its one argument. */
export type TrainerEvents = { [Type in TrainerEvent['type']]: [Extract<TrainerEvent, { type: Type }>] }
