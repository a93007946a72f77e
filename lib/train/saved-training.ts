/** The model and its optimizer in a checkpoint's folder. */
import { join } from 'node:path'
import { Qwen3Nvfp4Error } from '../errors'
import type { PackedAdamW } from '../model/packed-adamw'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'

const modelFile = 'model.dat'
const optimizerFile = 'optimizer.state'

/** Both exactly, side by side. `model.dat` can be served as it is. */
export async function saveTraining(folder: string, model: Qwen3Nvfp4Model, optimizer: PackedAdamW): Promise<void> {
  const saves = [optimizer.save(join(folder, optimizerFile)), saveModel(join(folder, modelFile), model)]
  // When one fails the folder goes, and nobody may be writing there any more.
  const failed = (await Promise.allSettled(saves)).find((save) => save.status === 'rejected')
  if (failed) throw failed.reason
}

async function saveModel(dat: string, model: Qwen3Nvfp4Model): Promise<void> {
  try {
    await model.saveDat(dat)
  } catch (error) {
    // One-level scales have no place for a residual in a .dat. The optimizer's file holds it in any case.
    if (!(error instanceof Qwen3Nvfp4Error && error.code === 'SAVE_LAYOUT_MISMATCH')) throw error
    await model.saveDat(dat, { residual: 'drop' })
  }
}

export async function restoreTraining(folder: string, model: Qwen3Nvfp4Model, optimizer: PackedAdamW): Promise<void> {
  await model.restoreDat(join(folder, modelFile))
  await optimizer.load(join(folder, optimizerFile))
}
