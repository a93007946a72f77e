import type {
  CacheDtype,
  NativeGenerateArgs,
  NativeGeneratedToken,
  NativeKvCache,
  NativeModel,
} from '../../types/native'
import type { FinishReason, GeneratedToken, GenerateOptions } from '../../types/options'
import { checkInt32Values, checkInteger, checkNumber, checkOptions, checkSeed, checkSignal } from '../check'
import { callNative, fromNative } from '../errors'
import { native } from '../native'
import { nativeCache } from './kv-cache'

const optionNames = [
  'maxTokens',
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'seed',
  'stopTokens',
  'topLogprobs',
  'maxRepeats',
  'cache',
  'history',
  'signal',
] as const

const defaultMaxTokens = 256

/** What a model says of itself. */
interface Traits {
  vocabSize: number
  eosTokenIds: readonly number[]
  /** Of a temporary cache. */
  cacheDtype: CacheDtype
}

interface Request {
  model: NativeModel
  args: NativeGenerateArgs
  /** Undefined: a temporary one is made. */
  cache: NativeKvCache | undefined
  cacheDtype: CacheDtype
  signal: AbortSignal | undefined
}

/** Checks everything at once, so that misuse throws from `generate` itself; computing starts with the iteration. */
export function generateTokens(
  model: NativeModel,
  { vocabSize, eosTokenIds, cacheDtype }: Traits,
  ids: Int32Array,
  options: GenerateOptions | undefined,
): AsyncGenerator<GeneratedToken, void, undefined> {
  const given = checkOptions(options, 'options', optionNames)
  const cache = given.cache === undefined ? undefined : nativeCache(given.cache)
  const room = cache ? cache.maxTokens - cache.seqLen - ids.length + 1 : Infinity
  const { maxTokens = Math.max(1, Math.min(defaultMaxTokens, room)), stopTokens = eosTokenIds, history = [] } = given
  const args: NativeGenerateArgs = {
    prompt: ids,
    history: checkInt32Values('history', history, 0, vocabSize - 1),
    maxTokens: checkInteger('maxTokens', maxTokens, 1),
    stopIds: checkInt32Values('stopTokens', stopTokens, 0, vocabSize - 1),
    maxRepeats: checkInteger('maxRepeats', given.maxRepeats ?? 64, 0, 2 ** 31 - 1),
    temperature: checkNumber('temperature', given.temperature ?? 0, { min: 0 }),
    topK: checkInteger('topK', given.topK ?? 0, 0, 2 ** 31 - 1),
    topP: checkNumber('topP', given.topP ?? 1, { above: 0, max: 1 }),
    minP: checkNumber('minP', given.minP ?? 0, { min: 0, below: 1 }),
    repetitionPenalty: checkNumber('repetitionPenalty', given.repetitionPenalty ?? 1, { above: 0 }),
    seed: checkSeed('seed', given.seed ?? 0),
    topLogprobs: checkInteger('topLogprobs', given.topLogprobs ?? 0, 0, vocabSize),
  }
  return produce({ model, args, cache, cacheDtype, signal: checkSignal(given.signal) })
}

/**
 * Gives out tokens as the native job pushes them; it never waits for us. Leaving the loop early stops the job, and the
 * iteration ends once it has stopped, so that the cache is free again.
 */
async function* produce({
  model,
  args,
  cache,
  cacheDtype,
  signal,
}: Request): AsyncGenerator<GeneratedToken, void, undefined> {
  signal?.throwIfAborted()
  const { prompt, maxTokens } = args
  const held = cache ?? callNative(() => new (native().KvCache)(model, prompt.length + maxTokens, cacheDtype))
  const last = lastTokenRule(args, held)
  const cancel = new (native().Cancel)()
  const abort = () => cancel.cancel()
  signal?.addEventListener('abort', abort, { once: true })

  const arrived: NativeGeneratedToken[] = []
  let wake = () => {}
  let ended = false
  let failure: unknown
  let job: Promise<void> = Promise.resolve()
  try {
    job = callNative(() =>
      model.generate(
        held,
        args,
        (token) => {
          arrived.push(token)
          wake()
        },
        cancel,
      ),
    )
      .then(
        () => {},
        (error: unknown) => {
          failure = fromNative(error)
        },
      )
      .then(() => {
        ended = true
        wake()
      })
    for (let index = 0; ;) {
      const token = arrived.shift()
      if (token) {
        const finishReason = last(token.id, index)
        yield { ...token, index: index++, ...(finishReason && { finishReason }) }
      } else if (ended) {
        break
      } else {
        await new Promise<void>((resolve) => (wake = resolve))
      }
    }
    if (failure) throw failure
    signal?.throwIfAborted()
  } finally {
    signal?.removeEventListener('abort', abort)
    cancel.cancel()
    await job
    if (!cache) await held.dispose()
  }
}

/** Why a token is the last one, known as soon as it arrives: the rules of csrc/model/generate.cpp. */
function lastTokenRule({ prompt, maxTokens, stopIds }: NativeGenerateArgs, cache: NativeKvCache) {
  const room = cache.maxTokens - cache.seqLen - prompt.length + 1
  return (id: number, index: number): FinishReason | undefined => {
    if (stopIds.includes(id)) return 'stop-token'
    if (index + 1 === maxTokens) return 'max-tokens'
    return index + 1 === room ? 'cache-full' : undefined
  }
}
