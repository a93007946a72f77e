/**
 * Everything the .node file exports, one interface per native class. Only lib/ calls it, with checked arguments.
 * A method that returns a promise runs on the device's lane, in the order of the calls; errors carry a `code`.
 */
import type { MemoryEstimate } from './options'
import type { Codebook, DType, Nibbles, Storage, WeightStorage } from './tensor'

export interface NativeAddon extends NativeCodec, NativeConverter {
  /** Single synchronous ops, for test/ops and benchmarks/ops. */
  readonly ops: Record<string, (...args: never[]) => unknown>
  Cancel: new () => NativeCancel
  /** One lane, pool and ledger per distinct arguments of a JS environment. `isa` '' is the best available. */
  Device: new (name: string, threads: number, isa: string) => NativeDevice
  /** Parameters have shapes and no memory until load() or initialize(). */
  Model: new (device: NativeDevice, config: NativeConfig, compute: Compute) => NativeModel
  KvCache: new (model: NativeModel, maxTokens: number, dtype: CacheDtype) => NativeKvCache
  Optimizer: new (model: NativeModel, options: NativeOptimizerOptions) => NativeOptimizer
  linearSte(device: NativeDevice, args: NativeLinearSteArgs, cancel?: NativeCancel): Promise<NativeLinearSteOutput>
  /** Synchronous arithmetic. */
  estimateMemory(config: NativeConfig, plan: NativeMemoryPlan): NativeMemoryBytes
  /** csrc/core/gpu_memory.h: of GPU `index`, on a thread that never waits for what devices compute. */
  gpuMemory(index: number, openContext: boolean): Promise<NativeGpuMemory>
}

export interface NativeGpuMemory {
  /** Whether the GPU's memory is the host's. */
  unified: boolean
  /** Bytes of the whole GPU, all processes; absent where the driver does not say. */
  free?: number
  total?: number
  /** Those that compute, with pids of the host; absent where the driver does not say the bytes of each. */
  processes?: { pid: number; bytes: number }[]
  /** Why something is absent. */
  reason: string
}

/** csrc/binding/native_codec.h. Arrays are copied on the JS thread; cols is a multiple of 16, scaleCols cols / 16. */
export interface NativeCodec {
  amax(device: NativeDevice, values: Float32Array, rows: number, cols: number, firstRow: number): Promise<number>
  /** Synchronous arithmetic. */
  twoLevelGlobalScale(amax: number): number
  quantizeNvfp4(
    device: NativeDevice,
    values: Float32Array,
    rows: number,
    cols: number,
    options: NativeQuantizeOptions,
  ): Promise<{ codes: Uint8Array; scales: Uint8Array }>
  dequantizeNvfp4(
    device: NativeDevice,
    codes: Uint8Array,
    scales: Uint8Array,
    rows: number,
    cols: number,
    globalScale: number,
  ): Promise<Float32Array>
  toBlockedScales(device: NativeDevice, scales: Uint8Array, rows: number, scaleCols: number): Promise<Uint8Array>
  fromBlockedScales(device: NativeDevice, blocked: Uint8Array, rows: number, scaleCols: number): Promise<Uint8Array>
}

export interface NativeQuantizeOptions {
  globalScale: number
  rounding: 'nearest' | 'stochastic'
  scaleRule: 'amax' | 'four-over-six' | 'amax-up'
  seed: bigint
  /** Index of the first row in the whole matrix: addresses random bits and names rows in errors. */
  firstRow: number
}

/** The flag behind an AbortSignal. */
export interface NativeCancel {
  cancel(): void
}

export interface NativeDevice {
  readonly name: string
  readonly threads: number
  readonly isa: string
  /** Bytes in use on the device by kind, their total, and the highest total since resetPeak(); of the whole GPU, on one. */
  memory(): NativeMemoryBytes & { peak: number; gpuFree?: number; gpuTotal?: number }
  resetPeak(): void
}

export type NativeMemoryBytes = MemoryEstimate

/** csrc/model/config.h */
export interface NativeConfig {
  H: number
  L: number
  Q: number
  KV: number
  D: number
  F: number
  V: number
  ropeBase: number
  eps: number
  tied: boolean
}

/** csrc/model/load.h: bytes [offset, offset + bytes) of files[file]. */
export interface NativeFileRange {
  file: number
  offset: number
  bytes: number
  /** Of what is read from it: f32 of Q8_0 blocks. */
  dtype: Extract<DType, 'f32' | 'f16' | 'bf16' | 'u8' | 'e4m3'>
  /** Blocks of a GGUF. Codes and scales of NVFP4 are then the same range. */
  blocks?: 'nvfp4' | 'q8_0'
}

/** csrc/model/load.h: where one parameter lies; `values`, `codes` and `scales`, or `bnb4`. */
export interface NativeTensorSource {
  parameter: string
  values?: NativeFileRange
  codes?: NativeFileRange
  scales?: NativeFileRange
  globalScale?: number
  twoLevel?: boolean
  /** Both or neither, and only of two levels: NVFP4 of what codes and scales miss, under globalScale / 8. */
  residualCodes?: NativeFileRange
  residualScales?: NativeFileRange
  /** In place of everything above. */
  bnb4?: NativeBnb4Source
}

/** csrc/model/load.h: Bnb4Source. value = table(code) · absmax of its block, over the elements in row-major order. */
export interface NativeBnb4Source {
  codebook: Codebook
  nibbles: Nibbles
  /** Elements of a block: a power of two from 64 to 4096. */
  blockSize: number
  codes: NativeFileRange
  /** f32, or u8 with `nested`. */
  absmax: NativeFileRange
  /** Double quantisation: absmax = map[absmax] · its own absmax + offset, each step rounded to f32. */
  nested?: { map: Float32Array; blockSize: number; absmax: NativeFileRange; offset: number }
}

/** csrc/model/load.h: LoadOptions. */
export interface NativeLoadOptions {
  quantize: boolean
  /** Converts every matrix to this; '' converts nothing. */
  dense: Storage | ''
  quantizeRawEmbedding: boolean
  twoLevel: boolean
  scaleRule: 'amax' | 'four-over-six' | 'amax-up'
  /** Into the buffers and storages of a model that is filled already. */
  inPlace: boolean
}

/** csrc/binding/native_convert.h: tensors of files in another form, a range of elements at a time, on a CPU device. */
export interface NativeConverter {
  convertRange(
    device: NativeDevice,
    files: readonly string[],
    source: NativeTensorSource,
    range: NativeRange,
    target: NativeConvertTarget,
    /** Gets the values or the blocks, or the codes and after them the scales; left alone until the promise settles. */
    out: Uint8Array,
    cancel?: NativeCancel,
  ): Promise<NativeConvertErrors>
  amaxOfRange(
    device: NativeDevice,
    files: readonly string[],
    source: NativeTensorSource,
    range: NativeRange,
    cancel?: NativeCancel,
  ): Promise<number>
  /** Errors of b against a, and how many elements differ. */
  compareRanges(
    device: NativeDevice,
    filesA: readonly string[],
    a: NativeTensorSource,
    filesB: readonly string[],
    b: NativeTensorSource,
    range: NativeRange,
    cancel?: NativeCancel,
  ): Promise<NativeValueErrors & { different: number }>
}

/** Elements [begin, end) of a tensor of `count`, in rows of `cols`; begin is a multiple of 16. */
export interface NativeRange {
  count: number
  cols: number
  begin: number
  end: number
}

export interface NativeConvertTarget {
  storage: Storage
  /** Blocks of a GGUF: of NVFP4, or Q8_0 of fp32. */
  blocks?: 'nvfp4' | 'q8_0'
  /** Keep the codes and scales of a packed source as they are. */
  copies: boolean
  globalScale: number
  scaleRule: NativeLoadOptions['scaleRule']
}

/** csrc/ops/value_errors.h. */
export interface NativeValueErrors {
  squaredError: number
  squares: number
  largestError: number
}

/** csrc/model/convert.h: ConvertErrors. */
export interface NativeConvertErrors extends NativeValueErrors {
  subnormalScales: number
}

export interface NativeInitializeOptions {
  seed: bigint
  stddev: number
  storage: Storage
  twoLevel: boolean
}

export interface NativeParameterInfo {
  name: string
  rows: number
  cols: number
  isVector: boolean
  trainable: boolean
  storage: WeightStorage
  /** Of 'bnb4' alone. */
  codebook?: Codebook
  twoLevel: boolean
  globalScale: number
  /** Whether the forward pass adds an NVFP4 residual to the codes. */
  residual: boolean
}

/** csrc/model/fold_residual.h */
export interface NativeFoldedResidual {
  codes: Uint8Array
  scales: Uint8Array
  globalScale: number
  /** √(Σ (folded − sum)² / Σ sum²) */
  relativeRmsError: number
}

/**
 * The stored forms of a parameter: `dense` is [rows, cols] in its storage, the others are of an NVFP4 matrix. Of 'bnb4'
 * codes u8[rows, cols / 2] and, as scales, absmax f32[rows, cols / 64].
 */
export type NativeParameterPart = 'dense' | 'codes' | 'scales' | 'residualCodes' | 'residualScales'

export type Compute = 'w4a16' | 'w4a4'
export type CacheDtype = 'fp32' | 'fp16' | 'bf16'
export type Recompute = 'all' | 'cheap' | 'none'
export type GradientStorage = 'fp32' | 'bf16' | 'nvfp4'

export interface NativeForwardArgs {
  ids: Int32Array
  batch: number
  tokens: number
  mask?: Uint8Array
  /** i32[batch, tokens]: where the segment of each token begins in its sequence. */
  starts?: Int32Array
  logits: 'all' | 'last' | 'none'
  hiddenStates: boolean
  reference: boolean
}

export interface NativeForwardOutput {
  logits?: NativeTensor
  hidden: NativeTensor[]
}

/** How backward() keeps gradients: csrc/train/gradient_store.h. */
export interface NativeGradientOptions {
  format: GradientStorage
  /** More than four NVFP4 micro-batches. */
  allowMany: boolean
  seed: bigint
}

export interface NativeTapeArgs {
  ids: Int32Array
  batch: number
  tokens: number
  mask?: Uint8Array
  /** As in NativeForwardArgs. */
  starts?: Int32Array
  recompute: Recompute
  /** Of record(): also return the hidden states. */
  hiddenStates?: boolean
}

export interface NativeLossArgs extends NativeTapeArgs {
  labels: Int32Array
  shifted: boolean
}

export interface NativeHiddenLossArgs extends NativeTapeArgs {
  /** f32[batch, tokens, H] */
  target: Float32Array
}

export interface NativeLoss {
  value: number
  tokens: number
  tape: NativeTape
}

export interface NativeGenerateArgs {
  prompt: Int32Array
  history: Int32Array
  maxTokens: number
  stopIds: Int32Array
  maxRepeats: number
  temperature: number
  topK: number
  topP: number
  minP: number
  repetitionPenalty: number
  seed: bigint
  topLogprobs: number
}

export interface NativeGeneratedToken {
  id: number
  logprob: number
  topLogprobs?: { id: number; logprob: number }[]
}

export type NativeFinishReason = 'max-tokens' | 'stop-token' | 'cache-full' | 'cancelled'

export interface NativeModel {
  readonly parameterCount: number
  /** `onProgress` gets coalesced byte counts. */
  load(
    files: string[],
    sources: NativeTensorSource[],
    options: NativeLoadOptions,
    onProgress?: (done: number, total: number) => void,
    cancel?: NativeCancel,
  ): Promise<void>
  initialize(options: NativeInitializeOptions, cancel?: NativeCancel): Promise<void>
  /** The parameters in their fixed order, as they are when the call's turn comes. */
  describe(): Promise<NativeParameterInfo[]>
  /** Fills `target` with the bytes of one stored form from `offset` on; it may not be used meanwhile. */
  readBytes(parameter: string, part: NativeParameterPart, offset: number, target: Uint8Array): Promise<void>
  /** The values that the forward pass uses, decoded to f32[rows, cols]. */
  readValues(parameter: string): Promise<Float32Array>
  /** Overwrites a parameter in its storage: dense values are rounded to nearest, NVFP4 is quantised anew. */
  writeValues(parameter: string, values: Float32Array): Promise<void>
  /** The NVFP4 of codes and residual together, rounded to nearest; the parameter stays as it is. */
  foldResidual(parameter: string, twoLevel: boolean): Promise<NativeFoldedResidual>
  forward(args: NativeForwardArgs, cancel?: NativeCancel): Promise<NativeForwardOutput>
  forwardCached(cache: NativeKvCache, args: NativeForwardArgs, cancel?: NativeCancel): Promise<NativeForwardOutput>
  record(args: NativeTapeArgs, cancel?: NativeCancel): Promise<NativeForwardOutput & { tape: NativeTape }>
  loss(args: NativeLossArgs, cancel?: NativeCancel): Promise<NativeLoss>
  hiddenLoss(args: NativeHiddenLossArgs, cancel?: NativeCancel): Promise<NativeLoss>
  /** Holds the cache until it settles; onToken gets every token before that. */
  generate(
    cache: NativeKvCache,
    args: NativeGenerateArgs,
    onToken: (token: NativeGeneratedToken) => void,
    cancel?: NativeCancel,
  ): Promise<NativeFinishReason>
  readGradient(parameter: string): Promise<Float32Array | null>
  zeroGradients(): Promise<void>
  /** Bytes of this model's own tensors, and of its stored gradients. */
  bytes(): Promise<{ weights: number; scales: number; gradients: number }>
  dispose(): Promise<void>
}

/** A device tensor f32[rows, cols] that stays where it is until read. */
export interface NativeTensor {
  readonly rows: number
  readonly cols: number
  /** Elements [begin, end) of the rows, copied. */
  read(beginRow: number, endRow: number): Promise<Float32Array>
  dispose(): Promise<void>
}

/** A recorded forward pass; backward consumes it. */
export interface NativeTape {
  /** Adds gradients of scale · loss, or of Σ dLogits · logits, to the model's store. */
  backward(
    dLogits: Float32Array | null,
    scale: number,
    gradients: NativeGradientOptions,
    cancel?: NativeCancel,
  ): Promise<void>
  dispose(): Promise<void>
}

export interface NativeKvCache {
  readonly seqLen: number
  readonly maxTokens: number
  readonly dtype: CacheDtype
  bytes(): Promise<number>
  truncate(tokens: number): Promise<void>
  fork(): Promise<NativeKvCache>
  save(path: string): Promise<void>
  restore(path: string): Promise<void>
  dispose(): Promise<void>
}

export type OptimizerWeights = 'nvfp4' | 'nvfp4+residual' | 'bf16' | 'fp32'
export type Moments = 'nvfp4' | 'int8' | 'bf16' | 'fp32'

/** csrc/train/packed_adamw.h: AdamwOptions. */
export interface NativeOptimizerOptions {
  beta1: number
  beta2: number
  eps: number
  weightDecay: number
  decayNorms: boolean
  weights: OptimizerWeights
  moments: Moments
  stepChunkRows: number
  seed: bigint
  residualInForward: boolean
  /** Names of the parameters it trains. */
  trainable: string[]
}

export interface NativeStepArgs {
  lr: number
  /** 0: no clipping. */
  maxGradNorm: number
}

/** Thresholds are 0 where nothing is skipped. */
export interface NativeKeptStepArgs extends NativeStepArgs {
  skipAboveNorm: number
  keepGradients: boolean
}

export interface NativeTrainStepArgs extends NativeStepArgs {
  skipAboveLoss: number
}

export interface NativeStepStats {
  step: number
  lr: number
  gradNorm: number
  clipScale: number
  updateRms: number
  changedCodes: number
  skipped: boolean
}

export interface NativeOptimizer {
  /** Makes the state; call it first. */
  create(): Promise<void>
  step(args: NativeKeptStepArgs, cancel?: NativeCancel): Promise<NativeStepStats>
  trainStep(
    batch: NativeLossArgs,
    args: NativeTrainStepArgs,
    cancel?: NativeCancel,
  ): Promise<NativeStepStats & { loss: number; tokens: number }>
  zeroGradients(): Promise<void>
  save(path: string): Promise<void>
  /** Resolves to the number of steps taken. */
  load(path: string): Promise<number>
  /** Bias-corrected moments f32[2, rows, cols], m then v, of a parameter that trains, and the updates it has had. */
  readMoments(parameter: string): Promise<{ moments: Float32Array; updates: number }>
  /** Takes such moments, rounded to the form in which they are kept. */
  writeMoments(parameter: string, m: Float32Array, v: Float32Array, updates: number): Promise<void>
  stateBytes(): Promise<number>
  dispose(): Promise<void>
}

export interface NativeLinearSteArgs {
  /** A dense matrix to fake-quantise; or `model` and `parameter`, used as it is. */
  weight?: Float32Array
  model?: NativeModel
  parameter?: string
  rows: number
  cols: number
  /** f32[tokens, cols] */
  input: Float32Array
  tokens: number
  twoLevel: boolean
  scaleRule: 'amax' | 'four-over-six'
}

export interface NativeLinearSteOutput {
  y: Float32Array
  context: NativeLinearSteContext
}

export interface NativeLinearSteContext {
  backward(dy: Float32Array, cancel?: NativeCancel): Promise<{ dInput: Float32Array; dWeight: Float32Array }>
  dispose(): Promise<void>
}

export interface NativeMemoryPlan {
  training: boolean
  cuda: boolean
  tokens: number
  batch: number
  threads: number
  weights: WeightStorage
  optimizerWeights: OptimizerWeights
  moments: Moments
  /** Names of parameters that do not train. */
  frozen: string[]
  /** '' when trainStep consumes gradients at once. */
  gradients: GradientStorage | ''
  recompute: Recompute
  cacheTokens: number
  cacheDtype: CacheDtype
  stepChunkRows: number
}
