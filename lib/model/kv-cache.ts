import type { CacheDtype, NativeKvCache } from '../../types/native'
import { checkInteger, checkPath, wrongType } from '../check'
import { awaitNative } from '../errors'

const natives = new WeakMap<object, NativeKvCache>()

/** What caches hold by default: what attention computes with, fp32 on the CPU and bf16 on a GPU. */
export const defaultCacheDtype = (device: string): CacheDtype => (device === 'cpu' ? 'fp32' : 'bf16')

/** The native cache of a KvCache argument. */
export function nativeCache(value: unknown): NativeKvCache {
  const cache = typeof value === 'object' && value !== null ? natives.get(value) : undefined
  if (!cache) throw wrongType('a KvCache', 'cache', value)
  return cache
}

/**
 * Keys and values of one conversation, in pages of 64 positions that are allocated as they are needed. One call at a
 * time may use it: another one meanwhile is refused with code BUSY.
 */
export class KvCache {
  readonly #native: NativeKvCache

  /** @internal */
  constructor(cache: NativeKvCache) {
    this.#native = cache
    natives.set(this, cache)
  }

  /** Positions in use, in tokens; of before a call that is running. */
  get seqLen(): number {
    return this.#native.seqLen
  }

  /** Positions that fit, in tokens. */
  get maxTokens(): number {
    return this.#native.maxTokens
  }

  get dtype(): CacheDtype {
    return this.#native.dtype
  }

  /** Bytes of the pages it refers to; pages shared with a fork count in full. */
  async bytes(): Promise<number> {
    return awaitNative(() => this.#native.bytes())
  }

  /** Keeps the first `tokens` positions and frees the pages behind them. */
  async truncate(tokens: number): Promise<void> {
    checkInteger('tokens', tokens, 0, this.seqLen)
    await awaitNative(() => this.#native.truncate(tokens))
  }

  /** Forgets everything. */
  async reset(): Promise<void> {
    await awaitNative(() => this.#native.truncate(0))
  }

  /** A second cache with the same content, which shares its pages until either writes to one. */
  async fork(): Promise<KvCache> {
    return new KvCache(await awaitNative(() => this.#native.fork()))
  }

  /** Writes the content to a file, beside it first and then renamed. */
  async save(path: string | URL): Promise<void> {
    const file = checkPath('path', path)
    await awaitNative(() => this.#native.save(file))
  }

  /** Replaces the content by that of a file; one of another model shape or dtype is refused (STATE_MISMATCH). */
  async restore(path: string | URL): Promise<void> {
    const file = checkPath('path', path)
    await awaitNative(() => this.#native.restore(file))
  }

  /** Frees the memory; resolves when earlier calls are over and it is free. Again is harmless. */
  async dispose(): Promise<void> {
    await awaitNative(() => this.#native.dispose())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}
