/** qwen3-nvfp4: run and train Qwen3 in 4 bits from Node.js. */
export { Qwen3Nvfp4Error, errorCodes } from './errors'
export type { ErrorCode, ErrorDetails } from './errors'

export { ChatTemplate } from './chat/chat-template'
export { generateText } from './chat/generate-text'
export { ChatSession } from './chat/session'
export type { ChatSessionOptions, TurnInput } from './chat/session-options'
export { StopStringMatcher } from './chat/stop-strings'
export type { StopStringResult } from './chat/stop-strings'
export { TextStream, Utf8Stream } from './chat/text-stream'
export type { TokenBytes } from './chat/text-stream'
export { Tokenizer } from './chat/tokenizer'
export type { DecodeOptions, EncodeOptions } from './chat/tokenizer'
export { parseTranscript, readTranscript, toTranscript, writeTranscript } from './chat/transcript'

export { DatReader } from './format/dat-reader'
export type { DatOpenOptions, DatSummary } from './format/dat-reader'
export { DatWriter } from './format/dat-writer'
export type { DatPayload, DatWriterOptions } from './format/dat-writer'
export { readDat, rewriteDat, writeDat } from './format/dat'
export type { DatReplacement, DatReplacements } from './format/dat'
export { elementTypes } from './format/element-types'
export type { ElementType } from './format/element-types'
export type { StreamOptions } from './format/tensor-reader'
export { SafetensorsReader, writeSafetensors } from './format/safetensors'
export type { SafetensorsTensor, SafetensorsWriteOptions } from './format/safetensors'

export { openCheckpoint } from './model/checkpoint'
export type { OpenCheckpointOptions } from './model/checkpoint'
export { parseQwen3Config, readQwen3Config, toConfigJson } from './model/config'
export { saveDat } from './model/save-dat'
export type { FoldedTensor } from './model/folded-residuals'
export type { SaveDatOptions, SaveDatResult, SavedModel } from './model/save-dat'
export type { SavedResidual, SavedScales } from './model/save-plan'
export { compareForwardPaths } from './model/compare-forward-paths'
export type {
  ForwardPathComparison,
  ForwardPathReport,
  LayerDifference,
  RankedToken,
  CompareOptions,
} from './model/compare-forward-paths'
export { DeviceTensor } from './model/device-tensor'
export { DifferentiableForwardResult, ForwardResult } from './model/forward-result'
export { KvCache } from './model/kv-cache'
export { Loss } from './model/loss'
export type { MemoryUse } from './model/memory'
export { PackedAdamW } from './model/packed-adamw'
export { Parameter } from './model/parameter'
export { Qwen3Nvfp4Model } from './model/qwen3-nvfp4-model'
export { LinearSteResult } from './ops/linear-ste'

export { dequantizeNvfp4, fromBlockedScales, quantizeNvfp4, toBlockedScales } from './ops/quantize'

export type * from '../types/chat'
export type * from '../types/checkpoint'
export type * from '../types/format'
export type { NativeFileRange, NativeTensorSource } from '../types/native'
export type * from '../types/config'
export type * from '../types/options'
export type * from '../types/quantize'
export type * from '../types/tensor'
export type * from '../types/training'
