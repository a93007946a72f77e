/**
 * The same tokens down the three paths of the library: A the reference (weights decoded to fp32, plain loops in double),
 * B the training forward, C the cached forward that serves, in chunks. They are one function, so they must agree.
 */
import type { TokenIds } from '../../types/options'
import { checkInteger, checkNumber, checkOptions, checkSignal, wrongShape } from '../check'
import type { ForwardResult } from './forward-result'
import type { Qwen3Nvfp4Model } from './qwen3-nvfp4-model'
import { checkIds } from './token-batch'

export interface CompareOptions {
  /** Gives ids their text. Default: none. */
  tokenizer?: { decode(ids: number[]): string }
  /** Likeliest ids to list for the last position, 1 or more. Default: 10. */
  topK?: number
  /**
   * Relative error from which a layer counts as diverged, above 0. Default: 1e-4; on a GPU 0.02, as the paths round to
   * bf16 at other places.
   */
  tolerance?: number
  /** Tokens a call of path C, 1 or more; the last two go one by one. Default: 16. */
  chunkTokens?: number
  signal?: AbortSignal
}

export interface RankedToken {
  id: number
  logit: number
  text?: string
}

export interface LayerDifference {
  /** 0 is the embedding, i the output of layer i - 1, the last one comes after the final norm. */
  layer: number
  /** ‖x − a‖ / ‖a‖ against path A. */
  relativeError: number
  cosine: number
}

export interface ForwardPathReport {
  /** Likeliest ids of the last position, best first. */
  top: RankedToken[]
  /** In logits and hidden states. */
  nanCount: number
  infinityCount: number
  /** Against path A; of A itself all zero. */
  layers: LayerDifference[]
  /** The same for the logits of all positions. */
  logits: { relativeError: number; cosine: number }
}

export interface ForwardPathComparison {
  reference: ForwardPathReport
  training: ForwardPathReport
  cached: ForwardPathReport
  /** The first layer of B or C whose relative error passes the tolerance or is NaN; null when none does. */
  firstDivergence: { path: 'training' | 'cached'; layer: number; relativeError: number } | null
  /** Whether all three rank the same id first. */
  sameTopToken: boolean
}

/** Logits [T, V] and hidden states [L + 1][T, H] of one path. */
interface PathValues {
  logits: Float32Array
  hidden: Float32Array[]
}

/** Runs one sequence down all three paths and says where they differ. */
export async function compareForwardPaths(
  model: Qwen3Nvfp4Model,
  ids: TokenIds,
  options?: CompareOptions,
): Promise<ForwardPathComparison> {
  const given = checkOptions(options, 'options', ['tokenizer', 'topK', 'tolerance', 'chunkTokens', 'signal'])
  const { vocabSize } = model.config
  const tokens = checkIds(ids, vocabSize)
  if (tokens.batch !== 1) throw wrongShape('one sequence', 'ids', `${tokens.batch} sequences`)
  const topK = checkInteger('topK', given.topK ?? 10, 1, vocabSize)
  const tolerance = checkNumber('tolerance', given.tolerance ?? (model.device === 'cpu' ? 1e-4 : 0.02), { above: 0 })
  const chunkTokens = checkInteger('chunkTokens', given.chunkTokens ?? 16, 1)
  const signal = checkSignal(given.signal)

  const all = { logits: 'all', hiddenStates: true, signal } as const
  const a = await readPath(await model.forward(tokens.ids, { ...all, reference: true }))
  const b = await readPath(await model.forward(tokens.ids, { ...all, gradient: true }))
  const c = await readCached(model, tokens.ids, chunkTokens, all)

  const describe = (values: PathValues) => report(values, a, vocabSize, topK, given.tokenizer)
  const [reference, training, cached] = [describe(a), describe(b), describe(c)]
  const first = (path: 'training' | 'cached', { layers }: ForwardPathReport) => {
    const found = layers.find(({ relativeError }) => !(relativeError <= tolerance))
    return found && { path, layer: found.layer, relativeError: found.relativeError }
  }
  const [ofB, ofC] = [first('training', training), first('cached', cached)]
  return {
    reference,
    training,
    cached,
    firstDivergence: (ofB && ofC ? (ofC.layer < ofB.layer ? ofC : ofB) : (ofB ?? ofC)) ?? null,
    sameTopToken: [training, cached].every(({ top }) => top[0]!.id === reference.top[0]!.id),
  }
}

async function readPath(result: ForwardResult): Promise<PathValues> {
  try {
    const hidden: Float32Array[] = []
    for (const state of result.hiddenStates) hidden.push(await state.toFloat32Array())
    return { logits: await result.logits.toFloat32Array(), hidden }
  } finally {
    await result.dispose()
  }
}

/** A long prompt in chunks, then single tokens, as a conversation makes them. */
async function readCached(
  model: Qwen3Nvfp4Model,
  ids: Int32Array,
  chunkTokens: number,
  options: { logits: 'all'; hiddenStates: true; signal: AbortSignal | undefined },
): Promise<PathValues> {
  const cache = model.createKvCache({ maxTokens: ids.length })
  try {
    const parts: PathValues[] = []
    const singles = Math.max(0, ids.length - 2)
    for (let begin = 0; begin < ids.length;) {
      const end = begin < singles ? Math.min(begin + chunkTokens, singles) : begin + 1
      parts.push(await readPath(await model.forwardWithKvCache(ids.subarray(begin, end), cache, options)))
      begin = end
    }
    return {
      logits: concatenate(parts.map(({ logits }) => logits)),
      hidden: parts[0]!.hidden.map((_, layer) => concatenate(parts.map(({ hidden }) => hidden[layer]!))),
    }
  } finally {
    await cache.dispose()
  }
}

function concatenate(parts: Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((length, part) => length + part.length, 0))
  let offset = 0
  for (const part of parts) {
    whole.set(part, offset)
    offset += part.length
  }
  return whole
}

function report(
  values: PathValues,
  reference: PathValues,
  vocabSize: number,
  topK: number,
  tokenizer: CompareOptions['tokenizer'],
): ForwardPathReport {
  let nanCount = 0
  let infinityCount = 0
  for (const array of [values.logits, ...values.hidden]) {
    for (const value of array) {
      if (Number.isNaN(value)) nanCount++
      else if (!Number.isFinite(value)) infinityCount++
    }
  }
  return {
    top: rank(values.logits.subarray(values.logits.length - vocabSize), topK, tokenizer),
    nanCount,
    infinityCount,
    layers: values.hidden.map((state, layer) => ({ layer, ...difference(state, reference.hidden[layer]!) })),
    logits: difference(values.logits, reference.logits),
  }
}

function rank(logits: Float32Array, topK: number, tokenizer: CompareOptions['tokenizer']): RankedToken[] {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b]! - logits[a]! || a - b)
  return order.slice(0, topK).map((id) => ({
    id,
    logit: logits[id]!,
    ...(tokenizer && { text: tokenizer.decode([id]) }),
  }))
}

function difference(x: Float32Array, a: Float32Array): { relativeError: number; cosine: number } {
  let distance = 0
  let normX = 0
  let normA = 0
  let dot = 0
  for (let i = 0; i < a.length; i++) {
    distance += (x[i]! - a[i]!) ** 2
    normX += x[i]! ** 2
    normA += a[i]! ** 2
    dot += x[i]! * a[i]!
  }
  if (distance === 0) return { relativeError: 0, cosine: 1 }
  return { relativeError: Math.sqrt(distance / normA), cosine: dot / Math.sqrt(normX * normA) }
}
