import { expectAssignable, expectError, expectNotAssignable, expectType } from 'tsd'
import type {
  DeviceTensor,
  DifferentiableForwardResult,
  ForwardResult,
  KvCache,
  LinearSteResult,
  Loss,
  Parameter,
  SaveDatResult,
} from 'qwen3-nvfp4'
import {
  compareForwardPaths,
  type Compute,
  type ErrorCode,
  type ForwardPathComparison,
  type GeneratedToken,
  type GenerateOptions,
  type LoadOptions,
  type MemoryEstimate,
  type MemoryUse,
  type Qwen3Config,
  Qwen3Nvfp4Error,
  Qwen3Nvfp4Model,
  type TokenIds,
} from 'qwen3-nvfp4'

declare const config: Qwen3Config
declare const model: Qwen3Nvfp4Model
declare const cache: KvCache

// Making one
expectType<Promise<Qwen3Nvfp4Model>>(Qwen3Nvfp4Model.load('model.dat'))
expectType<Promise<Qwen3Nvfp4Model>>(
  Qwen3Nvfp4Model.load(new URL('file:///model'), { device: 'cuda:0', onProgress: ({ doneBytes }) => doneBytes }),
)
expectType<Promise<Qwen3Nvfp4Model>>(Qwen3Nvfp4Model.initialize(config, { seed: 3n, threads: 2, weights: 'bf16' }))
expectError(Qwen3Nvfp4Model.load())
expectError(Qwen3Nvfp4Model.load('model.dat', { weights: 'int4' }))
expectType<Promise<Qwen3Nvfp4Model>>(Qwen3Nvfp4Model.load('model.dat', { device: 'cuda:0', compute: 'w4a4' }))
expectError(Qwen3Nvfp4Model.initialize(config, { compute: 'w8a8' }))
expectError(Qwen3Nvfp4Model.initialize({ hiddenSize: 64 }))
expectNotAssignable<new (...args: never[]) => unknown>(Qwen3Nvfp4Model)
expectNotAssignable<LoadOptions>({ modelDirectory: '.' })
expectType<MemoryEstimate>(Qwen3Nvfp4Model.estimateMemory(config, { mode: 'training', tokens: 128, moments: 'nvfp4' }))
expectError(Qwen3Nvfp4Model.estimateMemory(config, { mode: 'training' }))

// What it is
expectType<Qwen3Config>(model.config)
expectType<string>(model.device)
expectType<Compute>(model.compute)
expectType<number>(model.parameterCount)
expectError((model.config = config))

// Ids: one sequence or several
expectAssignable<TokenIds>([1, 2, 3])
expectAssignable<TokenIds>(new Int32Array(3))
expectAssignable<TokenIds>([[1, 2] as const, [3, 4]])
expectNotAssignable<TokenIds>('text')
expectNotAssignable<TokenIds>([1n])

// Running it
expectType<Promise<ForwardResult>>(model.forward([1, 2], { logits: 'all', hiddenStates: true }))
expectType<Promise<DifferentiableForwardResult>>(model.forward([1, 2], { gradient: true }))
expectError(model.forward([1, 2], { logits: 'some' }))
expectError(model.forward([1, 2], { gradient: false }).then((result) => result.backward(new Float32Array(2))))
expectType<Promise<ForwardResult>>(model.forwardWithKvCache([1], cache, { logits: 'last' }))
expectError(model.forwardWithKvCache([1]))
const result = await model.forward([1])
expectType<DeviceTensor>(result.logits)
expectType<readonly DeviceTensor[]>(result.hiddenStates)
expectType<readonly number[]>(result.logits.shape)
expectType<Promise<Float32Array>>(result.logits.toFloat32Array({ begin: 0, end: 1 }))

// The cache
expectType<KvCache>(model.createKvCache({ maxTokens: 100, dtype: 'bf16' }))
expectError(model.createKvCache({ dtype: 'bf16' }))
expectType<number>(cache.seqLen)
expectType<Promise<KvCache>>(cache.fork())
expectType<Promise<void>>(cache.truncate(3))
expectType<Promise<void>>(cache.save('cache.bin'))
expectType<Promise<void>>(cache.restore('cache.bin'))

// Text, token by token
for await (const token of model.generate([1], { temperature: 0.7, seed: 1n, cache })) {
  expectType<GeneratedToken>(token)
  expectType<number>(token.logprob)
  expectType<'max-tokens' | 'stop-token' | 'cache-full' | undefined>(token.finishReason)
}
expectNotAssignable<GenerateOptions>({ maxTokens: '3' })

// Parameters, losses and single products
for (const parameter of model.parameters()) {
  expectType<Parameter>(parameter)
  expectType<Promise<Float32Array | null>>(parameter.grad())
}
expectType<Parameter | undefined>(model.parameter('model.norm.weight'))
expectType<Promise<Loss>>(model.loss([[1, 2]], [[2, -100]], { shifted: true, recompute: 'cheap' }))
expectType<Promise<LinearSteResult>>(model.linearSte(new Float32Array(32), 'model.layers.0.mlp.up_proj.weight'))
const product = await model.linearSte(new Float32Array(32), new Float32Array(64), { rows: 4, cols: 16 })
expectType<Promise<{ dInput: Float32Array; dWeight: Float32Array }>>(product.backward(new Float32Array(8)))

// The rest
expectType<Promise<ForwardPathComparison>>(compareForwardPaths(model, [1, 2, 3], { topK: 3 }))
expectType<Promise<MemoryUse>>(model.memory())
expectType<Promise<SaveDatResult>>(model.saveDat('tuned.dat'))
expectAssignable<AsyncDisposable>(model)
expectAssignable<AsyncDisposable>(cache)

// Failures
const failure = new Qwen3Nvfp4Error('CACHE_FULL', 'full')
expectAssignable<Error>(failure)
expectType<ErrorCode>(failure.code)
expectError(new Qwen3Nvfp4Error('NO_SUCH_CODE', ''))
