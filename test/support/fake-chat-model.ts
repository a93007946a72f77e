/** A model without an addon: the next token is a function of the ids so far, and every computed position is counted. */
import type { ChatCache, ChatModel, GeneratedToken, GenerateOptions } from 'qwen3-nvfp4'

export class FakeCache implements ChatCache {
  ids: number[] = []
  disposed = false
  readonly maxTokens: number

  constructor(maxTokens: number) {
    this.maxTokens = maxTokens
  }

  get seqLen(): number {
    return this.ids.length
  }

  truncate(tokens: number): void {
    if (tokens > this.ids.length) throw new RangeError(`truncate to ${tokens} of ${this.ids.length}`)
    this.ids.length = tokens
  }

  reset(): void {
    this.ids = []
  }

  dispose(): void {
    this.disposed = true
  }
}

export type NextToken = (ids: readonly number[]) => number

export class FakeChatModel implements ChatModel {
  /** Positions computed so far, but for those of generated tokens. */
  prefilledTokens = 0
  /** How many tokens the model may be ahead of the reader: like the addon, it does not wait for one to be read. */
  lead = 3
  /** Throws after this many tokens of an answer. */
  failAfter = Infinity
  /** Whether forwardWithKvCache throws. */
  failForward = false
  /** Options of the last call of generate. */
  lastOptions: GenerateOptions | undefined
  readonly #nextToken: NextToken

  constructor(nextToken: NextToken) {
    this.#nextToken = nextToken
  }

  createKvCache({ maxTokens }: { maxTokens: number }): FakeCache {
    return new FakeCache(maxTokens)
  }

  async forwardWithKvCache(ids: Int32Array, cache: FakeCache, { logits }: { logits: 'none' }): Promise<void> {
    await null
    if (this.failForward) throw new Error('forward failed')
    if (logits !== 'none') throw new Error('logits were not needed')
    if (ids.length === 0 || cache.seqLen + ids.length > cache.maxTokens) throw new Error('no tokens or no room')
    cache.ids.push(...ids)
    this.prefilledTokens += ids.length
  }

  async *generate(
    prompt: Int32Array,
    options: GenerateOptions & { cache?: FakeCache },
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    this.lastOptions = options
    const { cache = new FakeCache(1 << 20), maxTokens = 256, stopTokens = [], signal } = options
    if (prompt.length === 0 || cache.seqLen + prompt.length > cache.maxTokens) throw new Error('no tokens or no room')
    await null
    signal?.throwIfAborted()
    cache.ids.push(...prompt)
    this.prefilledTokens += prompt.length
    const queue: GeneratedToken[] = []
    for (let made = 0, done = false; !done || queue.length > 0;) {
      while (!done && queue.length <= this.lead) {
        const token = this.#next(cache, made++)
        if (stopTokens.includes(token.id)) token.finishReason = 'stop-token'
        else if (made === maxTokens) token.finishReason = 'max-tokens'
        else if (cache.seqLen === cache.maxTokens) token.finishReason = 'cache-full'
        done = token.finishReason !== undefined
        if (!done) cache.ids.push(token.id)
        queue.push(token)
      }
      await null
      signal?.throwIfAborted()
      const token = queue.shift()!
      if (token.index >= this.failAfter) throw new Error('the model failed')
      yield token
    }
  }

  #next(cache: FakeCache, index: number): GeneratedToken {
    return { id: this.#nextToken(cache.ids), logprob: -0.5, index }
  }
}

/** Writes these answers in turn, each for as long as the conversation has that many earlier turns; then ends its turn. */
export function scriptedAnswers(answers: readonly string[], startId: number, stopId: number): NextToken {
  const header = [startId, ...Buffer.from('assistant\n')]
  return (ids) => {
    const turns = ids.flatMap((id, i) => (header.every((part, j) => ids[i + j] === part) ? [i + header.length] : []))
    const answer = [...Buffer.from(answers[turns.length - 1]!), stopId]
    return answer[ids.length - turns.at(-1)!]!
  }
}

/** Any byte at all, depending on every id before it; a stop once in a while. */
export function hashedBytes(seed: number, stopId: number): NextToken {
  return (ids) => {
    let hash = seed >>> 0
    for (const id of ids) hash = Math.imul(hash ^ id, 0x01000193) ^ (hash >>> 15)
    const value = (hash >>> 8) % 260
    return value >= 256 ? stopId : value
  }
}
