import { expectAssignable, expectError, expectNotAssignable, expectType } from 'tsd'
import {
  type OptimizerOptions,
  PackedAdamW,
  type Qwen3Nvfp4Model,
  type StepStats,
  type TrainBatch,
  type TrainStepStats,
} from 'qwen3-nvfp4'

declare const model: Qwen3Nvfp4Model

const optimizer = model.createOptimizer({
  lr: 5e-5,
  betas: [0.9, 0.95],
  moments: 'nvfp4',
  weights: 'nvfp4+residual',
  trainable: (name) => name.endsWith('weight'),
})
expectType<PackedAdamW>(optimizer)
expectType<PackedAdamW>(model.createOptimizer())
expectAssignable<OptimizerOptions>({ state: 'int8', gradients: 'bf16' })
expectNotAssignable<OptimizerOptions>({ moments: 'fp8' })
expectNotAssignable<OptimizerOptions>({ betas: [0.9] })
expectError(new PackedAdamW())

// The two ways to a step
expectType<Promise<StepStats>>(optimizer.step({ lr: 1e-4, maxGradNorm: 1, keepGradients: true }))
expectType<Promise<TrainStepStats>>(optimizer.trainStep({ ids: [1, 2], labels: [2, -100] }, { recompute: 'none' }))
expectError(optimizer.trainStep({ ids: [1, 2] }))
expectError(optimizer.step({ learningRate: 1 }))
expectAssignable<TrainBatch>({ ids: [[1], [2]], labels: new Int32Array(2), shifted: true })
const stats = await optimizer.trainStep({ ids: [1, 2], labels: [1, 2] })
expectAssignable<StepStats>(stats)
expectType<number>(stats.loss)
expectType<number>(stats.changedCodes)

// Its state
expectType<number>(optimizer.lr)
expectType<Promise<void>>(optimizer.save('adamw.state'))
expectType<Promise<number>>(optimizer.load('adamw.state'))
expectType<Promise<number>>(optimizer.stateBytes())
expectType<Promise<void>>(optimizer.zeroGrad())
expectAssignable<AsyncDisposable>(optimizer)
