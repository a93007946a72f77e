import type { Qwen3Config } from './config'
import type { NativeFoldedResidual, NativeTensorSource } from './native'
import type { Codebook, Nibbles, WeightStorage } from './tensor'

/** The forms that have bytes in memory. The residual parts are the NVFP4 of what codes and scales miss. */
export type StoredPart = 'values' | 'codes' | 'scales' | 'residualCodes' | 'residualScales'
/** What a bitsandbytes weight has in a file beside its codes. */
export type Bnb4Part = 'absmax' | 'quantMap' | 'quantState' | 'nestedAbsmax' | 'nestedQuantMap'
export type ParameterPart = StoredPart | 'globalScale' | Bnb4Part

/** One entry of the file that a model came from: a part of a parameter, or a tensor that the model does not use. */
export interface LayoutEntry {
  key: string
  /** The `.dat` id. */
  elementType: number
  shape: number[]
  /** Absent for a tensor that is only passed through. */
  parameter?: string
  part?: ParameterPart
  /** Where a passed-through tensor is read again when it is written. */
  file?: string
  /** Of the codes of a bitsandbytes weight. */
  nibbles?: Nibbles
  /** Of its absmax; without it one for every 64 elements. */
  absmaxForm?: AbsmaxForm
  /** The payload of what stands beside these two. */
  data?: Uint8Array
}

/** Elements of a block, and how its f32 absmax was quantised again: map[code] · absmax + offset, of blocks of it. */
export interface AbsmaxForm {
  blockSize: number
  nested?: { map: Float32Array; absmax: Float32Array; blockSize: number; offset: number }
}

/** What a saved file is to look like: entries in order. Parameters without one get the default entries. */
export interface CheckpointLayout {
  entries: LayoutEntry[]
}

/**
 * The kinds of checkpoints: `.dat`; Hugging Face safetensors with dense weights, with NVFP4 as ModelOpt or as
 * compressed-tensors stores it, and with the 4-bit weights of bitsandbytes; GGUF.
 */
export type CheckpointFormat = 'dat' | 'hf' | 'modelopt' | 'compressed-tensors' | 'bitsandbytes' | 'gguf'

/** Something about a checkpoint that is no error and that its user may want to know. */
export interface CheckpointWarning {
  /**
   * IGNORED_TENSORS: scales of activations or of quantised keys and values. UNUSED_TENSORS: tensors that the model has no
   * place for, or has in NVFP4 too. QUANTIZED_CACHE: keys and values were quantised where the checkpoint was made; here they are not.
   * SUBNORMAL_SCALES: one-level block scales so small that they lose bits. UNEQUAL_GLOBAL_SCALES: q, k and v, or gate and
   * up, have several, and runtimes that fuse them keep one. NO_TOKENIZER: a GGUF was written without one.
   */
  code:
    | 'IGNORED_TENSORS'
    | 'UNUSED_TENSORS'
    | 'QUANTIZED_CACHE'
    | 'SUBNORMAL_SCALES'
    | 'UNEQUAL_GLOBAL_SCALES'
    | 'NO_TOKENIZER'
  message: string
  file: string
  /** Every tensor that it is about. */
  tensors: string[]
}

/** A checkpoint whose index was read and checked against its configuration; no payload has been read. */
export interface Checkpoint {
  format: CheckpointFormat
  /** What the file holds: tied exactly when it has no head of its own. */
  config: Qwen3Config
  /** Absolute paths that `sources` count. */
  files: string[]
  /** One a parameter, in the core's order. */
  sources: NativeTensorSource[]
  layout: CheckpointLayout
  warnings: CheckpointWarning[]
}

/** The present form of a parameter, as a model describes it. */
export interface ParameterForm {
  name: string
  rows: number
  cols: number
  isVector: boolean
  storage: WeightStorage
  /** Of 'bnb4' alone. */
  codebook?: Codebook
  twoLevel: boolean
  globalScale: number
  /** Whether the value is that of the codes and of an NVFP4 residual. */
  residual?: boolean
}

/**
 * Where saveDat reads parameters: bytes of `values` in the storage's own type, of codes or of E4M3 scales; of 'bnb4' codes
 * whose low nibble is the even column, and f32 absmax of every 64 columns as scales.
 */
export interface ParameterSource {
  readonly parameters: readonly ParameterForm[]
  /** Fills `target` with the bytes from `offset` on. */
  read(name: string, part: StoredPart, offset: number, target: Uint8Array): Promise<void>
  /** Codes and residual quantised anew as one NVFP4 tensor. Needed to save with `residual: 'fold'`. */
  fold?(name: string, twoLevel: boolean): Promise<NativeFoldedResidual>
}
