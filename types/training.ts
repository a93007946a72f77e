/** What training reads: samples, batches of them, and how far into a set one has come. */
import type { ChatMessage, ChatTemplateOptions, ChatTool } from './chat'
import type { TrainBatch } from './options'

/** One sequence to learn from. */
export interface TrainingSample {
  ids: Int32Array
  /** The label of ids[t], which position t − 1 predicts: ids[t] where it has a loss, −100 where it has none. */
  labels: Int32Array
}

/** A sample of one's own, before it is checked. */
export interface TrainingSampleInput {
  ids: Int32Array | readonly number[]
  /** As in TrainingSample; as many as ids. */
  labels: Int32Array | readonly number[]
}

/** How much of a set was consumed. Plain data: `batches({ from })` goes on exactly there. */
export interface DataCursor {
  /** Epochs that are over. */
  epoch: number
  /** Samples consumed of the epoch after these, in its order. */
  sample: number
}

/** Where a sample comes from. */
export interface SampleOrigin {
  /** In words: a file and line, the tokens of a text, or the number of a sample. */
  where: string
  file?: string
  /** From 1. */
  line?: number
}

/** A batch that is ready to train on. */
export interface PreparedBatch {
  /** Rows of equal length, padded on the right; with `segments` when samples are packed. */
  batch: TrainBatch & { ids: Int32Array[]; labels: Int32Array[]; segments?: Int32Array }
  /** What was consumed once this batch is: where to go on after it. */
  cursor: DataCursor
  /** Samples in the batch. */
  samples: number
  /** Labels that count. */
  tokens: number
  /** Samples of the batch that lost the beginning of their prompt; only with `truncate`. */
  truncated: number
  /** Where its samples come from, in their order. Absent where a source of one's own does not say. */
  origins?: readonly SampleOrigin[]
}

/** The part of a Tokenizer that training data needs. */
export interface TrainingTokenizer {
  readonly vocabSize: number
  /** Ids that may end an answer. */
  readonly stopTokenIds: readonly number[]
  readonly padTokenId?: number
  readonly chatTemplate?: { readonly source: string }
  /** Where Tokenizer.fromFile has read it, and threads read it again. */
  readonly path?: string
  encode(text: string): Int32Array
  decode(ids: ArrayLike<number>): string
  idOf(token: string): number | undefined
  renderChatTemplate(messages: readonly ChatMessage[], options?: ChatTemplateOptions): string
}

export interface AnswerOptions {
  /** Which answers of a conversation have a loss. Default: 'all'. */
  answers?: 'all' | 'last'
  /** Tools that the template tells the model about. Default: none. */
  tools?: ChatTool[]
  /** As in ChatSessionOptions: whether a thinking model is asked to think first. Default: as its template has it. */
  enableThinking?: boolean
}

/** Options of a set that is read from files. */
export interface DataFileOptions {
  tokenizer: TrainingTokenizer
  /** Bytes of token ids that are kept for later epochs; what does not fit is tokenised again. Default: 1 GiB. */
  cacheBytes?: number
  /**
   * Threads that tokenise, 0 to 64, each with a tokenizer of its own (Qwen3's: about 200 MB), from when it is needed until the
   * batches end; for a tokenizer of `Tokenizer.fromFile`. Default: 0, the thread of the event loop does.
   */
  workers?: number
  signal?: AbortSignal
}

export interface TsvDataOptions extends DataFileOptions, Pick<AnswerOptions, 'enableThinking'> {
  /** Put in front of every prompt. Default: none. */
  systemPrompt?: string
}

export interface ChatDataOptions extends DataFileOptions, AnswerOptions {}

export interface TextDataOptions extends Omit<DataFileOptions, 'cacheBytes' | 'workers'> {
  /** A line with exactly this text ends a document and is no part of it. Default: none; each file is a document. */
  separator?: string
  /** The id behind every document. Default: that of `<|endoftext|>`, else the tokenizer's first stop token. */
  endTokenId?: number
}

export interface SampleDataOptions {
  /** Names the contents of a stream, which cannot be hashed before it is read. Default: all streams are alike. */
  fingerprint?: string
}

export interface BatchOptions {
  /** B, rows of a batch, 1 or more. The last batch of an epoch may have fewer. Default: 1. */
  batchSize?: number
  /** Most tokens of a row, 2 or more. */
  maxTokens: number
  /** Put several samples into a row, none of which attends to another. Default: false. */
  pack?: boolean
  /** Another order in every epoch, which depends on seed and epoch alone. Default: true, for a stream false. */
  shuffle?: boolean
  /** Seed of the order, 0 to 2^64 − 1. Default: 0. */
  seed?: number | bigint
  /** Times that every sample is seen; Infinity never ends. Default: 1. */
  epochs?: number
  /** Cut prompts of samples that are longer than maxTokens from the left, instead of refusing them. Default: false. */
  truncate?: boolean
  /** Refuse ids and labels from here on, for a model whose vocabulary is smaller than the tokenizer's. Default: none. */
  vocabSize?: number
  /** The id of padding; it has no loss and nothing attends to it. Default: 0. */
  padTokenId?: number
  /** Goes on after the batch that had this cursor. Default: from the beginning. */
  from?: DataCursor
  /** Batches prepared before they are asked for, 0 or more. Default: 2. */
  lookAhead?: number
  signal?: AbortSignal
}

/** What `TrainingData` offers to those who train on it. */
export interface BatchSource {
  /** Hash of what the samples are made of: contents, template, tokenizer and options. A cursor belongs to one. */
  readonly fingerprint: string
  /** Samples in an epoch; undefined for streams and for text, whose windows depend on maxTokens. */
  readonly sampleCount: number | undefined
  batches(options: BatchOptions): AsyncGenerator<PreparedBatch, void, undefined>
  /**
   * How many batches `batches(options)` gives; refuses bad samples of the whole set before training begins, and leaves
   * the token ids in the cache. A stream is read to its end.
   */
  countBatches(options: BatchOptions): Promise<number>
}
