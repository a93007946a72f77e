import { expectAssignable, expectError, expectType } from 'tsd'
import {
  TrainingData,
  answerSample,
  type BatchSource,
  type PackedAdamW,
  type PreparedBatch,
  type Tokenizer,
  type TrainBatch,
  type TrainStepStats,
  type TrainingSample,
  type TrainingTokenizer,
} from 'qwen3-nvfp4'

declare const tokenizer: Tokenizer
declare const data: TrainingData
declare const optimizer: PackedAdamW

expectAssignable<TrainingTokenizer>(tokenizer)
expectAssignable<BatchSource>(data)
expectType<Promise<TrainingData>>(TrainingData.fromTsv('a.tsv', { tokenizer, systemPrompt: 'Be brief.' }))
expectType<Promise<TrainingData>>(TrainingData.fromChatJsonl(['a.jsonl', 'b.jsonl'], { tokenizer, answers: 'last' }))
expectType<Promise<TrainingData>>(TrainingData.fromText('a.txt', { tokenizer, separator: '---' }))
expectType<Promise<TrainingData>>(TrainingData.fromSamples([{ ids: [1, 2], labels: new Int32Array(2) }]))
expectType<TrainingData>(TrainingData.mix([{ data, weight: 3 }]))
expectError(TrainingData.fromTsv('a.tsv'))
expectError(TrainingData.fromChatJsonl('a.jsonl', { tokenizer, answers: 'first' }))
expectError(data.batches({ batchSize: 4 }))

const batches = data.batches({
  maxTokens: 512,
  batchSize: 4,
  pack: true,
  epochs: Infinity,
  from: { epoch: 1, sample: 7 },
})
expectType<AsyncGenerator<PreparedBatch, void, undefined>>(batches)
declare const prepared: PreparedBatch
expectAssignable<TrainBatch>(prepared.batch)
expectType<Promise<TrainStepStats>>(optimizer.trainStep(prepared.batch))
expectType<Promise<number>>(data.countBatches({ maxTokens: 512 }))
expectType<TrainingSample>(
  answerSample(tokenizer, [
    { role: 'user', content: 'a' },
    { role: 'assistant', content: 'b' },
  ]),
)
