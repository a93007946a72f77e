import type { BatchOptions, DataCursor } from '../../types/training'
import { checkBoolean, checkInteger, checkOptions, checkSeed, checkSignal, wrongType } from '../check'

const optionNames = [
  'batchSize',
  'maxTokens',
  'pack',
  'shuffle',
  'seed',
  'epochs',
  'truncate',
  'vocabSize',
  'padTokenId',
  'from',
  'lookAhead',
  'signal',
] as const

/** Batch options with their defaults in place. */
export type BatchPlan = Required<Omit<BatchOptions, 'shuffle' | 'signal' | 'seed'>> & {
  shuffle: boolean | undefined
  seed: bigint
  signal: AbortSignal | undefined
}

function checkCursor(value: unknown): DataCursor {
  if (typeof value !== 'object' || value === null) throw wrongType('a cursor { epoch, sample }', 'from', value)
  const { epoch, sample } = value as Partial<DataCursor>
  return { epoch: checkInteger('from.epoch', epoch, 0), sample: checkInteger('from.sample', sample, 0) }
}

export function checkBatchOptions(options: BatchOptions): BatchPlan {
  const given = checkOptions(options, 'options', optionNames)
  const { epochs = 1, shuffle } = given
  return {
    batchSize: checkInteger('batchSize', given.batchSize ?? 1, 1),
    maxTokens: checkInteger('maxTokens', given.maxTokens, 2),
    pack: checkBoolean('pack', given.pack ?? false),
    shuffle: shuffle === undefined ? undefined : checkBoolean('shuffle', shuffle),
    seed: checkSeed('seed', given.seed ?? 0),
    epochs: epochs === Infinity ? epochs : checkInteger('epochs', epochs, 1),
    truncate: checkBoolean('truncate', given.truncate ?? false),
    vocabSize: checkInteger('vocabSize', given.vocabSize ?? 2 ** 31 - 1, 1),
    padTokenId: checkInteger('padTokenId', given.padTokenId ?? 0, 0),
    from: checkCursor(given.from ?? { epoch: 0, sample: 0 }),
    lookAhead: checkInteger('lookAhead', given.lookAhead ?? 2, 0),
    signal: checkSignal(given.signal),
  }
}
