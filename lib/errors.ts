/** The only error classes of the package. Misuse is a TypeError or RangeError from lib/check.ts instead. */

/** Every `code` of a Qwen3Nvfp4Error, with its meaning in one line. docs/errors.md is this table with remedies. */
export const errorCodes = {
  // csrc/core/status.h, in its order
  INVALID_ARGUMENT: 'The core refused an argument that the checks in front of it let through.',
  UNSUPPORTED: 'The request is valid, but this build or this device cannot do it.',
  OUT_OF_MEMORY: 'An allocation failed; the message says how many bytes were asked and what would shrink them.',
  DISPOSED: 'The object was used after dispose(), or belongs to a model that was disposed.',
  BUSY: 'The object is in use by another call that has not finished.',
  ABORTED: 'The operation was aborted; with an AbortSignal the promise rejects with signal.reason instead.',
  CACHE_FULL: 'The key/value cache has no room for the tokens.',
  NON_FINITE_LOGITS: 'The model produced NaN or infinity in its logits.',
  NON_FINITE_GRADIENT:
    'A loss or gradient holds NaN or infinity; `key` names the first tensor or layer, `step` the step. step() changes nothing then, trainStep() may have updated tensors before that one.',
  NON_FINITE_WEIGHT: 'A loaded tensor holds a NaN, an infinity or a NaN scale; the message names it.',
  DEGENERATE_OUTPUT: 'Generation repeated one token id maxRepeats times in a row.',
  IO_FAILED: 'A file operation failed; the message has the path and the reason of the operating system.',
  FILE_TRUNCATED: 'A file ended before the data that its index promises.',
  STALE_GRADIENT: 'Weights changed between a forward pass and its backward pass, or the pass was already used.',
  STATE_MISMATCH:
    'A stored state belongs to a model of another shape or mode, or a cache was changed outside its session.',
  CUDA_UNAVAILABLE: 'A CUDA device was asked for and cannot be had: no driver, no device, or a build without CUDA.',
  CUDA_FAILED: 'A CUDA call failed; the message has its name and error.',
  INTERNAL: 'A bug of this package; please report it with the message.',
  // lib/format
  DAT_BAD_KEY: 'A .dat entry has a key that is empty, too long or not UTF-8.',
  DAT_BAD_SHAPE: 'A .dat entry has a shape that is impossible or not what the model needs.',
  DAT_BAD_VARINT: 'A .dat length or dimension is not a valid LEB128 number.',
  DAT_DUPLICATE_KEY: 'A .dat file has the same key twice.',
  DAT_ENTRY_COUNT: 'A .dat writer got another number of entries than it was told.',
  DAT_ENTRY_TOO_LARGE: 'A payload is larger than one array holds; stream it.',
  DAT_NO_SUCH_KEY: 'A .dat file has no entry of that key.',
  DAT_OPTIMIZER_STATE: 'The file is an optimizer state of TorchSharp, not a state dictionary.',
  DAT_PAYLOAD_SIZE: 'A .dat writer got a payload that is longer or shorter than its shape.',
  DAT_OVERSIZED: 'A .dat file goes on after its last entry.',
  DAT_TOO_MANY_ENTRIES: 'A .dat file promises more entries than it can hold.',
  DAT_TRUNCATED: 'A .dat file ends before its last entry does.',
  DAT_UNKNOWN_TYPE: 'A .dat entry has an element type that is not known.',
  SAFETENSORS_BAD_HEADER: 'The header of a safetensors file is too long, or not the JSON object it must be.',
  SAFETENSORS_BAD_OFFSETS: 'Payloads of a safetensors file overlap, leave holes or contradict their shapes.',
  SAFETENSORS_BAD_SHAPE: 'A safetensors entry has an impossible shape.',
  SAFETENSORS_DUPLICATE_KEY: 'The header of a safetensors file has the same name twice.',
  SAFETENSORS_ENTRY_TOO_LARGE: 'A payload is larger than one array holds; stream it.',
  SAFETENSORS_NO_SUCH_KEY: 'A safetensors file has no tensor of that name.',
  SAFETENSORS_TRUNCATED: 'A safetensors file ends before its header or last payload does.',
  SAFETENSORS_UNKNOWN_TYPE: 'A safetensors entry has a dtype that is not known.',
  GGUF_BAD_HEADER: 'A file is not a GGUF, or of a version or byte order that is not read.',
  GGUF_BAD_METADATA:
    'The metadata of a GGUF has an unknown type, text that is not UTF-8, arrays of arrays or an impossible alignment.',
  GGUF_BAD_OFFSETS: 'Payloads of a GGUF overlap, leave holes or begin at unaligned places.',
  GGUF_BAD_TENSOR: 'A GGUF describes a tensor of an unknown type or an impossible shape.',
  GGUF_DUPLICATE_KEY: 'A GGUF has the same key or tensor twice.',
  GGUF_NO_SUCH_KEY: 'A GGUF has no tensor of that name.',
  GGUF_TENSOR_TOO_LARGE: 'A payload is larger than one array holds; stream it.',
  GGUF_TRUNCATED: 'A GGUF ends before its header or last payload does, or announces more than it can hold.',
  OPTIMIZER_FILE_INVALID: 'A file is not the state of a TorchSharp AdamW, or is not whole; the message says where.',
  // lib/model
  CONFIG_INVALID:
    'A config.json is not JSON, or a field of it or of the metadata of a GGUF is missing, of the wrong kind or contradictory.',
  CONFIG_NOT_FOUND: 'No config.json was found for a checkpoint; the message lists where it was looked for.',
  CONFIG_UNSUPPORTED:
    'A config.json or a GGUF describes a model that is not a dense Qwen3; the message names the field.',
  CHECKPOINT_BAD_INDEX: 'A model.safetensors.index.json is broken or contradicts its files.',
  CHECKPOINT_BAD_QUANT_STATE:
    'The table or the state of a bitsandbytes weight is broken, of another kind than nf4 and fp4, or contradicts its tensors.',
  CHECKPOINT_BAD_SCALE: 'An NVFP4 tensor of a checkpoint has a global scale that is not a positive number.',
  CHECKPOINT_MISSING_TENSORS: 'A checkpoint lacks tensors that its configuration needs; the message lists them.',
  CHECKPOINT_NOT_FOUND: 'A path is neither a .dat or .gguf file nor a Hugging Face directory with safetensors files.',
  CHECKPOINT_SHAPE_MISMATCH: 'A tensor of a checkpoint has another shape than its configuration says.',
  CHECKPOINT_UNEXPECTED_TENSORS:
    'A checkpoint has tensors inside the model, or with strict: true any, that it does not use; strict: false keeps them.',
  CHECKPOINT_UNSUPPORTED_TENSORS:
    'A checkpoint has tensors that change what its weights mean, such as the scales of AWQ; the message lists them.',
  CHECKPOINT_UNSUPPORTED_TYPE: 'A tensor of a checkpoint has an element type that a weight cannot have.',
  NOT_ENOUGH_DISK: 'The disk has less room than a checkpoint will take; nothing was written.',
  SAVE_LAYOUT_MISMATCH: 'The parameters do not fit the layout that was asked for; the message says which and why.',
  SAVE_TARGET_EXISTS: 'A directory that a checkpoint is to be written into has files in it.',
  VERIFY_FAILED: 'A checkpoint that was just written reads back with other bytes; it was removed.',
  // lib/train
  CHECKPOINT_DIR_BUSY: 'Another process writes this folder of training checkpoints; the message names it.',
  CHECKPOINT_DIR_NOT_EMPTY: 'A folder holds checkpoints of a run that this one does not go on from.',
  DEPENDENCY_MISSING: 'A package that only this request needs is not installed.',
  MEMORY_LIMIT: 'A MemoryGuard saw a limit passed; the message has the bytes in use and the limit.',
  MEMORY_UNOBSERVABLE: 'Memory that has a limit cannot be read here; the message has the reason.',
  NON_FINITE_LOSS:
    'Training met a loss or gradient that is NaN or infinite and stopped; the message names the data, the tensor and the last good checkpoint.',
  RESUME_MISMATCH:
    'A training checkpoint belongs to a run of other settings, data or format; the message lists what differs.',
  RESUME_NOT_FOUND: 'A path to resume from holds no whole training checkpoint.',
  TRAINING_DATA_CHANGED: 'A file of training data is not the one that was opened; the message says what differs.',
  TRAINING_DATA_EMPTY: 'A set of training data holds no sample.',
  TRAINING_DATA_INVALID:
    'A line of training data is not what its format asks for; the message has file, line and text.',
  TRAINING_ID_OUT_OF_RANGE: 'A sample has an id or label that is not in the vocabulary.',
  TRAINING_NO_LABELS: 'A sample has no label that counts: all are -100, or only the first one is not.',
  TRAINING_SAMPLE_TOO_LONG: 'A sample has more tokens than maxTokens, or more than truncation may cut.',
  TRAINING_TEMPLATE_REWRITES:
    'The chat template renders an answered conversation otherwise than the prompt that is served, so an answer has no place to be learned at.',
  // lib/chat
  CHAT_TEMPLATE_FAILED: 'The chat template cannot be parsed, or failed on these messages.',
  CHAT_TEMPLATE_MISSING: 'The tokenizer has no chat template.',
  TOKENIZER_INVALID: 'A tokenizer file is broken, contradicts the other one or is of an unsupported kind.',
  TRANSCRIPT_INVALID: 'A file or object is not a transcript of a conversation.',
  // lib/native.ts
  ADDON_LOAD_FAILED: 'The native addon could not be loaded; the message lists what was tried and what to do.',
} as const

export type ErrorCode = keyof typeof errorCodes

/** What a failure concerns, as far as it is known; every field becomes a property of the error. */
export interface ErrorDetails {
  cause?: unknown
  /** The file that was read or written. */
  file?: string
  /** The entry of the file, or the name of the tensor or layer. */
  key?: string
  /** Where in the file, in bytes from its start. */
  offset?: number
  /** The line of a text file, from 1. */
  line?: number
  /** Number of the optimizer step that failed. */
  step?: number
}

const brand = Symbol.for('qwen3-nvfp4.error')

/**
 * A failure (not a misuse) of this library. `code` is stable and listed in docs/errors.md.
 *
 * `instanceof` holds across the package's entry points and module formats, each of which carries its own copy.
 */
export class Qwen3Nvfp4Error extends Error {
  readonly code: ErrorCode
  readonly file?: string
  readonly key?: string
  readonly offset?: number
  readonly line?: number
  readonly step?: number

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, 'cause' in details ? { cause: details.cause } : undefined)
    this.code = code
    if (details.file !== undefined) this.file = details.file
    if (details.key !== undefined) this.key = details.key
    if (details.offset !== undefined) this.offset = details.offset
    if (details.line !== undefined) this.line = details.line
    if (details.step !== undefined) this.step = details.step
    Object.defineProperty(this, brand, { value: true })
  }

  static {
    Object.defineProperty(this.prototype, 'name', { value: 'Qwen3Nvfp4Error', configurable: true, writable: true })
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && brand in value
  }
}

/** A system call that failed on `file`: code IO_FAILED, the system's own error as `cause`. */
export function ioError(doing: string, file: string, cause: unknown): Qwen3Nvfp4Error {
  const system = cause as NodeJS.ErrnoException
  const remedy =
    system?.code === 'ENOSPC' || system?.code === 'EDQUOT'
      ? '; free some space or choose another folder'
      : system?.code === 'ENOENT'
        ? '; check the path'
        : ''
  return new Qwen3Nvfp4Error('IO_FAILED', `cannot ${doing} ${file}: ${system?.message ?? String(cause)}${remedy}`, {
    cause,
    file,
  })
}

/** Throws the signal's reason once it is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  signal?.throwIfAborted()
}

/** An error thrown by the addon as ours, with the stack of the caller; anything else unchanged. */
export function fromNative(error: unknown): unknown {
  if (error instanceof Qwen3Nvfp4Error || typeof error !== 'object' || error === null) return error
  const { code, message, key, step } = error as { code?: unknown; message?: unknown; key?: string; step?: number }
  if (typeof code !== 'string' || !Object.hasOwn(errorCodes, code)) return error
  return new Qwen3Nvfp4Error(code as ErrorCode, String(message), { cause: error, key, step })
}

/** Runs a synchronous native call, or awaits a native promise, so that only our errors leave it. */
export function callNative<T>(body: () => T): T {
  try {
    return body()
  } catch (error) {
    throw fromNative(error)
  }
}

export async function awaitNative<T>(start: () => Promise<T>): Promise<T> {
  try {
    return await start()
  } catch (error) {
    throw fromNative(error)
  }
}
