import { expectAssignable, expectError, expectType } from 'tsd'
import {
  type EvalEvent,
  type PackedAdamW,
  type Qwen3Nvfp4Model,
  type StepEvent,
  type StopReason,
  Trainer,
  type TrainerEvent,
  type TrainerOptions,
  type TrainingData,
  type TrainResult,
} from 'qwen3-nvfp4'

declare const model: Qwen3Nvfp4Model
declare const data: TrainingData
declare const optimizer: PackedAdamW

expectAssignable<TrainerOptions>({ model, data, maxTokens: 8 })
expectAssignable<TrainerOptions>({ model, data, maxTokens: 8, optimizer, trainable: { names: [/mlp/] } })
expectAssignable<TrainerOptions>({ model, data, maxTokens: 8, optimizer: { weights: 'nvfp4+residual' }, resume: 'run' })
expectError<TrainerOptions>({ model, data })
expectError<TrainerOptions>({ model, data, maxTokens: 8, optimizer: { lr: 1 } })

const trainer = new Trainer({ model, data, maxTokens: 8 })
trainer.on('step', (event) => expectType<StepEvent>(event))
trainer.once('eval', (event) => expectType<EvalEvent>(event))
expectError(trainer.on('steps', () => {}))
expectType<Promise<TrainResult>>(trainer.run())
expectType<StopReason>((await trainer.run()).reason)
for await (const event of trainer) {
  expectType<TrainerEvent>(event)
  if (event.type === 'checkpoint') expectType<string>(event.path)
}
