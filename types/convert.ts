/** Conversion, inspection and comparison of checkpoints (lib/convert). */
import type { CheckpointFormat, CheckpointWarning, ParameterPart } from './checkpoint'
import type { Qwen3Config } from './config'
import type { DTypeName, Progress } from './format'
import type { Nibbles, Storage, WeightStorage } from './tensor'

/** What is written: a `.dat`, a GGUF, or a Hugging Face directory with dense weights or NVFP4 in one of two ways. */
export type ExportFormat = 'dat' | 'hf-bf16' | 'hf-fp16' | 'hf-fp32' | 'modelopt' | 'compressed-tensors' | 'gguf'

/** Forms of a tensor in files: Q8_0 is GGUF's alone. */
export type FileStorage = Storage | 'q8_0'

/** Forms that a tensor is read in: those of bitsandbytes are not written. */
export type SourceStorage = WeightStorage | 'q8_0'

/** Dense element types. */
export type DenseStorage = Exclude<Storage, 'nvfp4'>

export interface ConvertProgress extends Progress {
  /** Bytes are counted as they are read, and once more as what was written is verified. */
  phase: 'convert' | 'verify'
  /** The parameter that is being worked on. */
  tensor: string
}

export interface ConvertOptions {
  /** Default: 'dat' for a target that ends with `.dat`, 'gguf' for `.gguf`; a directory needs it. */
  format?: ExportFormat
  /** How matrices are stored in a `.dat` or a GGUF ('q8_0' there alone); the other formats have one way. Default: 'nvfp4'. */
  weights?: FileStorage
  /**
   * Levels of the NVFP4 scales of a `.dat`: 'one-level' is the prior system's layout exactly; 'two-level' keeps a global
   * scale for each tensor. ModelOpt and compressed-tensors always have two. Default: 'one-level'.
   */
  scales?: 'one-level' | 'two-level'
  /** How block scales are chosen of what is quantised: 'four-over-six' has about 8 % less error. Default: 'amax'. */
  scaleRule?: 'amax' | 'four-over-six'
  /**
   * NVFP4 that the target cannot hold as it is (a global scale in one level, a residual): false refuses it, true
   * quantises its values anew and reports the error. Default: false.
   */
  requantize?: boolean
  /**
   * Modules that stay dense: parts of names such as 'self_attn' or 'layers.0.', names with `*`, or regular expressions.
   * Default: none.
   */
  dense?: readonly (string | RegExp)[]
  /**
   * Element type of what stays dense. 'as-stored' keeps it; what was NVFP4 becomes bf16, what bitsandbytes stored fp32.
   * Default: 'fp16' in a one-level `.dat`, as the prior system reads it, 'as-stored' in a two-level one and in a GGUF with
   * NVFP4, whose norms are fp32 always and which may have 'q8_0' too, that of the format in a directory.
   */
  denseType?: DenseStorage | 'q8_0' | 'as-stored'
  /** Whether a `.dat` gets a dense embedding quantised too. Default: 'as-stored'. */
  embedding?: 'as-stored' | 'nvfp4'
  /**
   * The head of a tied model in a `.dat`: 'own' writes the embedding again as an NVFP4 `lm_head`, as the prior system's
   * files have it, and the model is untied then; 'tied' writes none. Default: 'own' in one level, else 'tied'.
   */
  head?: 'own' | 'tied'
  /** Bytes of tensors in a safetensors file of a directory, 1 or more; a parameter is never split. Default: 5e9. */
  shardBytes?: number
  /** Read what was written again and compare it with what was meant. Default: true. */
  verify?: boolean
  /** The configuration, when there is no config.json. */
  config?: Qwen3Config
  /** Folder of config.json and of the tokenizer's files. Default: that of the source. */
  modelDir?: string | URL
  /** As in LoadOptions. Default: 'high-first'. */
  nibbles?: Nibbles
  /** As in LoadOptions; what is not refused is left out, with a warning. */
  strict?: boolean
  /** Threads, 1 or more. Default: the cores this process may use. Results do not depend on it. */
  threads?: number
  /** Ends the conversion; nothing half-written stays. */
  signal?: AbortSignal
  onProgress?: (progress: ConvertProgress) => void
  /** Called with what a user may want to know. Default: process.emitWarning. */
  onWarning?: (warning: CheckpointWarning) => void
}

export interface ExportOptions extends Pick<
  ConvertOptions,
  | 'weights'
  | 'scaleRule'
  | 'dense'
  | 'denseType'
  | 'requantize'
  | 'shardBytes'
  | 'verify'
  | 'threads'
  | 'signal'
  | 'onProgress'
  | 'onWarning'
> {
  format: Exclude<ExportFormat, 'dat'>
  /** Folder whose tokenizer files and further fields of config.json are taken along. Default: none. */
  modelDir?: string | URL
}

/** What became of a parameter. */
export interface ConvertedTensor {
  name: string
  from: SourceStorage
  to: FileStorage
  /** Whether its values are exactly what they were. */
  exact: boolean
  /** √(Σ (new − old)² / Σ old²) */
  relativeRmsError: number
  largestError: number
  /** Share of NVFP4 blocks that are not zero under a scale below 2^-6, where E4M3 has fewer than four bits; else 0. */
  subnormalScales: number
}

export interface ConvertResult {
  format: ExportFormat
  /** Absolute paths of everything that was written, weights first. */
  files: string[]
  /** Bytes of the files with weights. */
  bytes: number
  tensors: ConvertedTensor[]
}

/** A tensor as its file has it. */
export interface InspectedTensor {
  key: string
  dtype: DTypeName
  shape: number[]
  bytes: number
  /** Index of its file in `files`. */
  file: number
  /** The parameter that it is a part of; absent for what the model does not use. */
  parameter?: string
  part?: ParameterPart
  /** With `scales: true`, of NVFP4 block scales. */
  scales?: ScaleStatistics
}

export interface ScaleStatistics {
  blocks: number
  /** Smallest scale above zero, and largest; 0 when all are zero. */
  smallest: number
  largest: number
  zero: number
  /** Below 2^-6. */
  subnormal: number
  /** NaN or negative: a checkpoint with one does not load. */
  invalid: number
}

export interface CheckpointInspection {
  format: CheckpointFormat
  files: { path: string; bytes: number; tensors: number }[]
  bytes: number
  tensors: InspectedTensor[]
  /** Tensors and bytes of each dtype, largest first. */
  dtypes: { dtype: DTypeName; tensors: number; bytes: number }[]
  /** Absent when none was found or it is refused; `problems` says why. */
  config?: Qwen3Config
  /** Elements of the configuration's parameters. */
  parameterCount?: number
  /** Tensors that the configuration needs and no file has. */
  missing: string[]
  /** Tensors that the model does not use. */
  unexpected: string[]
  /** Scales of activations and caches, and bitsandbytes weights of what is there in NVFP4 too: all are ignored. */
  ignored: string[]
  /** What would keep it from loading, in words. */
  problems: string[]
}

export interface InspectOptions {
  /** Also read every block scale for its statistics. Default: false. */
  scales?: boolean
  config?: Qwen3Config
  modelDir?: string | URL
  signal?: AbortSignal
}

export interface VerifyOptions {
  /**
   * 'bits': the same parts of every parameter, byte for byte, whatever the files call them. 'values': the numbers that
   * they stand for. Default: 'values'.
   */
  by?: 'bits' | 'values'
  /** Largest |a − b| that counts as equal, 0 or more, by values. Default: 0. */
  tolerance?: number
  /** Configurations when a checkpoint has none. Default: that of the other one. */
  config?: Qwen3Config
  /** As in LoadOptions, of both. Default: 'high-first'. */
  nibbles?: Nibbles
  threads?: number
  signal?: AbortSignal
  onProgress?: (progress: Progress) => void
}

/** How a parameter differs. */
export interface TensorDifference {
  name: string
  /** Only one has it; its storage, scales or shape differ; bytes; values. */
  kind: 'only-in-a' | 'only-in-b' | 'storage' | 'global-scale' | 'bits' | 'values'
  message: string
  /** By values: elements that differ by more than nothing, and by how much. */
  different?: number
  largestDifference?: number
  relativeRmsDifference?: number
}

export interface VerifyResult {
  equal: boolean
  /** Parameters that both have. */
  compared: number
  differences: TensorDifference[]
}
