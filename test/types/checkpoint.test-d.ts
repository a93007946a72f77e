import { expectAssignable, expectError, expectType } from 'tsd'
import {
  type CheckpointInspection,
  type CheckpointWarning,
  convert,
  type ConvertResult,
  exportCheckpoint,
  inspect,
  openCheckpoint,
  Qwen3Nvfp4Model,
  verify,
  type VerifyResult,
} from 'qwen3-nvfp4'

expectType<Promise<ConvertResult>>(convert('Qwen3-4B', 'model.dat'))
expectType<Promise<ConvertResult>>(
  convert('Qwen3-4B', new URL('file:///out'), {
    format: 'compressed-tensors',
    scaleRule: 'four-over-six',
    dense: ['layers.0.', /v_proj$/],
    onProgress: ({ phase, tensor, doneBytes }) => {
      expectType<'convert' | 'verify'>(phase)
      expectType<string>(tensor)
      expectType<number>(doneBytes)
    },
    onWarning: (warning) => expectType<CheckpointWarning>(warning),
  }),
)
expectError(convert('Qwen3-4B', 'model.dat', { format: 'gptq' }))
expectError(convert('Qwen3-4B', 'model.dat', { denseType: 'nvfp4' }))
expectError(convert('Qwen3-4B'))

const model = await Qwen3Nvfp4Model.load('model.dat', { onWarning: ({ code }) => expectAssignable<string>(code) })
expectType<Promise<ConvertResult>>(exportCheckpoint(model, 'out', { format: 'hf-bf16' }))
expectError(exportCheckpoint(model, 'out', { format: 'dat' }))
expectType<Promise<ConvertResult>>(exportCheckpoint(model, 'x.gguf', { format: 'gguf', weights: 'q8_0' }))
expectError(exportCheckpoint(model, 'out'))

expectType<Promise<CheckpointInspection>>(inspect('model.dat', { scales: true }))
expectType<Promise<VerifyResult>>(verify('a.dat', 'b', { by: 'bits', tolerance: 0 }))
expectType<'dat' | 'hf' | 'modelopt' | 'compressed-tensors' | 'bitsandbytes' | 'gguf'>(
  (await openCheckpoint('out', { nibbles: 'low-first' })).format,
)

for (const { storage, codebook } of model.parameters()) {
  expectType<'nvfp4' | 'bnb4' | 'fp32' | 'fp16' | 'bf16'>(storage)
  expectType<'nf4' | 'fp4' | undefined>(codebook)
}
expectError(Qwen3Nvfp4Model.load('model.dat', { weights: 'bnb4' }))
expectError(convert('Qwen3-4B', 'model.dat', { weights: 'bnb4' }))
expectError(convert('Qwen3-4B', 'model.dat', { nibbles: 'high' }))
