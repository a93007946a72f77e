/** Entry of `qwen3-nvfp4/dat`: the file formats alone, without the addon. */
export { Qwen3Nvfp4Error, type ErrorCode, type ErrorDetails } from './errors'
export { AdamwFileReader, writeAdamwFile, type AdamwFileGroup, type AdamwFileState } from './format/adamw-file'
export { DatReader, type DatOpenOptions, type DatSummary } from './format/dat-reader'
export { DatWriter, type DatPayload, type DatWriterOptions } from './format/dat-writer'
export { readDat, rewriteDat, writeDat, type DatReplacement, type DatReplacements } from './format/dat'
export {
  SafetensorsReader,
  writeSafetensors,
  type SafetensorsTensor,
  type SafetensorsWriteOptions,
} from './format/safetensors'
export { GgufReader } from './format/gguf'
export { elementTypes, type ElementType } from './format/element-types'
export type { StreamOptions } from './format/tensor-reader'
export type {
  ByteSource,
  ByteSourceInput,
  DatEntry,
  DatTensor,
  DTypeName,
  GgmlBlockName,
  GgufValue,
  LongOperationOptions,
  Progress,
  TensorData,
  TensorEntry,
} from '../types/format'
