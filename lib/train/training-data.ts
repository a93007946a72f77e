import type {
  BatchOptions,
  BatchSource,
  ChatDataOptions,
  DataFileOptions,
  PreparedBatch,
  SampleDataOptions,
  TextDataOptions,
  TrainingSampleInput,
  TsvDataOptions,
} from '../../types/training'
import {
  checkInteger,
  checkNumber,
  checkOptions,
  checkPath,
  checkSignal,
  checkString,
  wrongShape,
  wrongType,
  wrongValue,
} from '../check'
import { answerOptionNames, checkAnswerOptions, checkTokenizer } from './answer-sample'
import { checkBatchOptions } from './batch-options'
import type { LineFormat } from './line-formats'
import { LineSource } from './line-source'
import { MixedSource } from './mixed-source'
import { StoredSource, StreamedSource, type SampleStream } from './own-samples'
import { Pacer } from './pacer'
import { prepareBatches } from './prepare-batches'
import type { SampleSource } from './sample-source'
import { TextSource } from './text-source'

/** A file, or several that are read one behind the other. */
export type DataPaths = string | URL | readonly (string | URL)[]

const fileOptionNames = ['tokenizer', 'cacheBytes', 'workers', 'signal'] as const
/** More than that many threads wait for the one that makes batches. */
const mostWorkers = 64
const defaultCacheBytes = 2 ** 30

function checkPaths(paths: unknown): string[] {
  if (!Array.isArray(paths)) return [checkPath('path', paths)]
  if (paths.length === 0) throw wrongShape('at least one path', 'path', 'none')
  return paths.map((path, i) => checkPath(`path[${i}]`, path))
}

const checkFileOptions = ({ tokenizer, cacheBytes, signal }: DataFileOptions) => ({
  tokenizer: checkTokenizer(tokenizer),
  cacheBytes: checkInteger('cacheBytes', cacheBytes ?? defaultCacheBytes, 0),
  pacer: new Pacer(checkSignal(signal)),
})

/** The id of a document's end. */
function endTokenId({ tokenizer, endTokenId: given }: TextDataOptions): number {
  const id = given ?? tokenizer.idOf('<|endoftext|>') ?? tokenizer.stopTokenIds[0]
  if (id === undefined) throw wrongType('an id, as the tokenizer has no end token,', 'endTokenId', id)
  return checkInteger('endTokenId', id, 0)
}

/**
 * What a model learns from: samples of ids and labels, made into batches in an order that depends on the seed alone.
 * Files are read and tokenised as they are needed, in slices that leave the event loop free.
 *
 * @example
 * const data = await TrainingData.fromTsv('pairs.tsv', { tokenizer })
 * for await (const { batch } of data.batches({ batchSize: 4, maxTokens: 512, pack: true, epochs: 3 })) {
 *   await optimizer.trainStep(batch)
 * }
 */
export class TrainingData implements BatchSource {
  readonly #source: SampleSource

  private constructor(source: SampleSource) {
    this.#source = source
  }

  /** Lines of `prompt<TAB>answer`; empty ones and those that begin with `#` are left out. */
  static async fromTsv(path: DataPaths, options: TsvDataOptions): Promise<TrainingData> {
    const given = checkOptions(options, 'options', [...fileOptionNames, 'systemPrompt', 'enableThinking'])
    const { systemPrompt } = given
    if (systemPrompt !== undefined) checkString('systemPrompt', systemPrompt)
    return TrainingData.#fromLines(path, given, { kind: 'tsv', systemPrompt })
  }

  /** A JSON object a line, `{"messages": [{"role", "content"}, …]}`, with `tools` where a conversation has its own. */
  static async fromChatJsonl(path: DataPaths, options: ChatDataOptions): Promise<TrainingData> {
    const given = checkOptions(options, 'options', [...fileOptionNames, ...answerOptionNames])
    return TrainingData.#fromLines(path, given, { kind: 'chat' })
  }

  /** Running text, in windows of maxTokens whose every token has a loss. */
  static async fromText(path: DataPaths, options: TextDataOptions): Promise<TrainingData> {
    const given = checkOptions(options, 'options', ['tokenizer', 'signal', 'separator', 'endTokenId'])
    const { separator } = given
    const { tokenizer, pacer } = checkFileOptions(given)
    const settings = {
      tokenizer,
      separator: separator === undefined ? undefined : checkString('separator', separator),
      endTokenId: endTokenId(given),
    }
    return new TrainingData(await TextSource.read(checkPaths(path), settings, pacer))
  }

  /**
   * Ids and labels of one's own: all at once, or streamed. A function gives the stream anew for every epoch; to resume,
   * what was consumed of an epoch is skipped.
   */
  static async fromSamples(
    samples: Iterable<TrainingSampleInput> | AsyncIterable<TrainingSampleInput> | SampleStream,
    options?: SampleDataOptions,
  ): Promise<TrainingData> {
    const { fingerprint } = checkOptions(options, 'options', ['fingerprint'])
    if (fingerprint !== undefined) checkString('fingerprint', fingerprint)
    if (typeof samples === 'function') return new TrainingData(new StreamedSource(samples, fingerprint))
    if (typeof samples !== 'object' || samples === null) throw wrongType('an iterable of samples', 'samples', samples)
    if (Symbol.iterator in samples) return new TrainingData(new StoredSource(samples))
    if (!(Symbol.asyncIterator in samples)) throw wrongType('an iterable of samples', 'samples', samples)
    return new TrainingData(new StreamedSource(() => samples, fingerprint))
  }

  /** Several sets as one: of every stretch of samples each has its share, `weight` of the sum of weights. */
  static mix(parts: readonly { data: TrainingData; weight: number }[]): TrainingData {
    if (!Array.isArray(parts)) throw wrongType('an array of { data, weight }', 'parts', parts)
    if (parts.length === 0) throw wrongShape('at least one set', 'parts', 'none')
    const sources = parts.map((part: { data: TrainingData; weight: number } | undefined, i) => {
      const data: unknown = part?.data
      if (typeof data !== 'object' || data === null || !(#source in data)) {
        throw wrongType('a TrainingData', `parts[${i}].data`, data)
      }
      if (data.#source.isStream) throw wrongType('a set that is no stream', `parts[${i}].data`, data)
      return { source: data.#source, weight: checkNumber(`parts[${i}].weight`, part?.weight, { above: 0 }) }
    })
    return new TrainingData(new MixedSource(sources))
  }

  static async #fromLines(path: DataPaths, options: ChatDataOptions, format: LineFormat) {
    const { tokenizer, cacheBytes, pacer } = checkFileOptions(options)
    const workers = checkInteger('workers', options.workers ?? 0, 0, mostWorkers)
    if (workers > 0 && tokenizer.path === undefined) {
      throw wrongType('a Tokenizer of Tokenizer.fromFile, which workers read again,', 'tokenizer', tokenizer)
    }
    const settings = { tokenizer, cacheBytes, workers, format, answers: checkAnswerOptions(options) }
    return new TrainingData(await LineSource.read(checkPaths(path), settings, pacer))
  }

  get fingerprint(): string {
    return this.#source.fingerprint
  }

  get sampleCount(): number | undefined {
    return this.#source.sampleCount
  }

  batches(options: BatchOptions): AsyncGenerator<PreparedBatch, void, undefined> {
    return prepareBatches(this.#source, checkBatchOptions(options))
  }

  async countBatches(options: BatchOptions): Promise<number> {
    const plan = checkBatchOptions(options)
    if (plan.epochs === Infinity) throw wrongValue('a number of epochs that ends', 'epochs', Infinity)
    const batches = prepareBatches(this.#source, { ...plan, lookAhead: 0 })
    let count = 0
    while (!(await batches.next()).done) count++
    return count
  }
}
