/** What happens before the first step: the length of the run is found, and a checkpoint is gone on from. */
import { Qwen3Nvfp4Error } from '../errors'
import type { PackedAdamW } from '../model/packed-adamw'
import { type CheckpointDirectory, findCheckpoint, type SavedCheckpoint } from './checkpoint-directory'
import { restoreTraining } from './saved-training'
import { settingDifferences, type Settings } from './settings'
import type { TrainerPlan } from './trainer-plan'
import type { SavedProgress, TrainerState } from './trainer-state'

/** What a checkpoint says besides model and optimizer. */
export interface SavedState {
  settings: Settings
  progress: SavedProgress
}

/** Steps of the run; undefined when only its end will tell. */
export async function countSteps({
  data,
  steps,
  epochs,
  accumulate,
  schedule,
  batches,
}: TrainerPlan): Promise<number | undefined> {
  if (steps !== undefined) return steps
  if (data.sampleCount === undefined && schedule.schedule === 'constant') return undefined
  return Math.ceil((await data.countBatches({ ...batches, epochs })) / accumulate)
}

export interface Resumed {
  checkpoint: SavedCheckpoint
  damaged: string[]
}

/** Goes on from the checkpoint that the plan names, if there is one; see `resume` of TrainerOptions. */
export async function resumeRun(
  plan: TrainerPlan,
  directory: CheckpointDirectory | undefined,
  settings: Settings,
  optimizer: PackedAdamW,
  state: TrainerState,
): Promise<Resumed | undefined> {
  const here = directory && (await findCheckpoint(directory.path)).checkpoint
  if (plan.resume === false) {
    if (!here) return undefined
    throw new Qwen3Nvfp4Error(
      'CHECKPOINT_DIR_NOT_EMPTY',
      `${directory!.path} holds the checkpoint of step ${here.step}: ask for resume: true, or choose another checkpointDir`,
      { file: directory!.path },
    )
  }
  const from = plan.resume === true ? directory!.path : plan.resume
  const { checkpoint, damaged } = await findCheckpoint(from)
  if (!checkpoint) {
    if (plan.resume === true) return undefined
    throw new Qwen3Nvfp4Error('RESUME_NOT_FOUND', `${from} holds no whole training checkpoint`, { file: from })
  }
  if (here && here.step > checkpoint.step) {
    const message = `${directory!.path} holds the later checkpoint of step ${here.step}: delete it, or choose another checkpointDir`
    throw new Qwen3Nvfp4Error('CHECKPOINT_DIR_NOT_EMPTY', message, { file: directory!.path })
  }
  const saved = checkpoint.state as SavedState
  const differences = settingDifferences(saved.settings, settings, plan.allowChanged)
  if (differences.length > 0) {
    const message =
      `${checkpoint.path} belongs to another run: ${differences.join('; ')}. ` +
      'Use its settings, or name those that may differ in allowChanged'
    throw new Qwen3Nvfp4Error('RESUME_MISMATCH', message, { file: checkpoint.path })
  }
  await restoreTraining(checkpoint.path, plan.model, optimizer)
  state.saved = saved.progress
  return { checkpoint, damaged }
}
