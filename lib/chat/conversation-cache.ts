import type { ChatCache, ChatModel } from '../../types/chat'
import { Qwen3Nvfp4Error } from '../errors'
import { truncateTo } from './generate-text'

function commonPrefix(a: Int32Array, b: Int32Array): number {
  const end = Math.min(a.length, b.length)
  let i = 0
  while (i < end && a[i] === b[i]) i++
  return i
}

/** A key/value cache together with the ids that it holds, so that only what differs is computed again. */
export class ConversationCache {
  readonly cache: ChatCache
  readonly #model: ChatModel
  /** Undefined when a failure has left the content unknown. */
  #ids: Int32Array | undefined

  constructor(model: ChatModel, cache: ChatCache, ids: Int32Array) {
    this.#model = model
    this.cache = cache
    this.#ids = ids
  }

  /** The ids that the cache holds, as far as is known. */
  get ids(): Int32Array {
    return this.#ids ?? new Int32Array(0)
  }

  /** Refuses a cache that someone else has changed: its content would silently be another conversation's. */
  checkUnchanged(): void {
    if (this.#ids === undefined || this.cache.seqLen === this.#ids.length) return
    throw new Qwen3Nvfp4Error(
      'STATE_MISMATCH',
      `the session wrote ${this.#ids.length} tokens but its cache holds ${this.cache.seqLen}: it was changed from outside; call reset() to start again`,
    )
  }

  /** How many of `ids` the cache holds already, the last one not counted when `keepLast` asks for it to be computed. */
  reusable(ids: Int32Array, keepLast: boolean): number {
    const held = commonPrefix(ids, this.ids)
    return keepLast ? Math.min(held, ids.length - 1) : held
  }

  /** Room for all of `ids` and `reserve` more, or CACHE_FULL with nothing changed. */
  checkRoom(ids: Int32Array, reserve: number): void {
    const { maxTokens } = this.cache
    const total = ids.length + reserve
    if (total <= maxTokens) return
    const held = this.reusable(ids, false)
    throw new Qwen3Nvfp4Error(
      'CACHE_FULL',
      `the conversation needs ${total - held} more tokens but the cache has room for ${maxTokens - held} (${maxTokens} in all); use a larger cache or a new session`,
    )
  }

  /** Keeps the first `tokens` positions. */
  async truncate(tokens: number): Promise<void> {
    if (this.#ids === undefined) {
      await this.cache.reset()
      this.#ids = new Int32Array(0)
    }
    await truncateTo(this.cache, tokens)
    this.#ids = this.#ids.slice(0, tokens)
  }

  /** Makes the cache hold exactly `ids`, computing those behind the common beginning. */
  async fill(ids: Int32Array): Promise<void> {
    await this.truncate(this.reusable(ids, false))
    const rest = ids.subarray(this.ids.length)
    if (rest.length === 0) return
    this.#ids = undefined
    await this.#model.forwardWithKvCache(rest, this.cache, { logits: 'none' })
    this.#ids = ids
  }

  /** After a generation that began with this prompt and had come this far when it ended. */
  async adopt(prompt: Int32Array, produced: readonly number[]): Promise<void> {
    const ids = new Int32Array(prompt.length + produced.length)
    ids.set(prompt)
    ids.set(produced, prompt.length)
    await truncateTo(this.cache, ids.length)
    this.#ids = ids.slice(0, this.cache.seqLen)
  }

  /** After a failure that nothing is known about. */
  forget(): void {
    this.#ids = undefined
  }
}
