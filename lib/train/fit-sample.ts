import type { SampleOrigin } from '../../types/training'
import { Qwen3Nvfp4Error } from '../errors'
import { ignoreLabel } from '../model/token-batch'
import type { BatchPlan } from './batch-options'
import { sampleError, type LocatedSample } from './sample-source'

/** A sample that a row has room for. */
export interface FittedSample {
  ids: Int32Array
  labels: Int32Array
  /** Labels that count. */
  tokens: number
  truncated: boolean
  origin: SampleOrigin
}

/** Where the first label that counts stands: nothing predicts the first id, whose label therefore does not. */
function firstLabel(labels: Int32Array): number {
  for (let t = 1; t < labels.length; t++) if (labels[t] !== ignoreLabel) return t
  return -1
}

/** Tokens to cut from the left of a sample; at least one stays in front of the first label. */
async function tokensToCut(sample: LocatedSample, first: number, { maxTokens, truncate }: BatchPlan): Promise<number> {
  const { length } = sample.ids
  if (length <= maxTokens) return 0
  const what = `a sample of ${length} tokens, but maxTokens is ${maxTokens}`
  if (!truncate) {
    const remedy = `raise it to ${length}, or set truncate to cut prompts from the left`
    throw await sampleError('TRAINING_SAMPLE_TOO_LONG', `${what}; ${remedy}`, sample)
  }
  const cut = length - maxTokens
  if (cut < first) return cut
  const least = length - first + 1
  throw await sampleError(
    'TRAINING_SAMPLE_TOO_LONG',
    `${what}; only its prompt is cut, so raise it to ${least}`,
    sample,
  )
}

async function checkVocabulary(sample: LocatedSample, name: 'ids' | 'labels', vocabSize: number): Promise<void> {
  const at = sample[name].findIndex((id) => id >= vocabSize)
  if (at < 0) return
  const what = `${name}[${at}] is ${sample[name][at]}, but the vocabulary has ${vocabSize} ids`
  throw await sampleError('TRAINING_ID_OUT_OF_RANGE', what, sample)
}

/** The sample as it goes into a row, or an error that says where it comes from. */
export async function fitSample(sample: LocatedSample, plan: BatchPlan): Promise<FittedSample> {
  await checkVocabulary(sample, 'ids', plan.vocabSize)
  await checkVocabulary(sample, 'labels', plan.vocabSize)
  const first = firstLabel(sample.labels)
  if (first < 0) throw await sampleError('TRAINING_NO_LABELS', 'no label counts, so there is nothing to learn', sample)
  const cut = await tokensToCut(sample, first, plan)
  const ids = sample.ids.subarray(cut)
  const labels = sample.labels.subarray(cut)
  labels[0] = ignoreLabel
  const tokens = labels.reduce((sum, label) => sum + (label === ignoreLabel ? 0 : 1), 0)
  return { ids, labels, tokens, truncated: cut > 0, origin: sample.origin }
}

export const emptySet = (): Qwen3Nvfp4Error =>
  new Qwen3Nvfp4Error('TRAINING_DATA_EMPTY', 'the training data gave no sample')
