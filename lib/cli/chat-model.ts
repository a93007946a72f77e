/** How `chat` feeds its model and keeps its cache: the parts that a debugging session may want otherwise. */
import { existsSync } from 'node:fs'
import { readFile, rm, writeFile } from 'node:fs/promises'
import type { ChatModel, GeneratedToken, KvCache, Qwen3Nvfp4Model, TextModel } from 'qwen3-nvfp4'
import { note, warn } from './output'

/** Computes prompts a token a call, as answers are, where the model itself takes them whole. */
export function tokenByToken(model: Qwen3Nvfp4Model): ChatModel {
  const feed = async (ids: Int32Array, cache: KvCache) => {
    for (const id of ids) await model.forwardWithKvCache([id], cache, { logits: 'none' })
  }
  async function* generate(
    ids: Int32Array,
    { cache, history = [], ...options }: Parameters<TextModel['generate']>[1],
  ): AsyncGenerator<GeneratedToken> {
    const before = ids.subarray(0, -1)
    await feed(before, cache as unknown as KvCache)
    yield* model.generate(ids.subarray(-1), { ...options, cache, history: [...history, ...before] })
  }
  return {
    generate,
    forwardWithKvCache: (ids, cache) => feed(ids, cache as unknown as KvCache),
    createKvCache: (options) => model.createKvCache(options),
  }
}

/** A cache in a file, and the ids that it holds in another beside it. */
export class CacheFile {
  readonly #path: string
  readonly #idsPath: string

  constructor(path: string) {
    this.#path = path
    this.#idsPath = `${path}.ids.json`
  }

  /** What the file holds, now in `cache`; nothing when there is no file. */
  async restore(cache: KvCache): Promise<Int32Array> {
    if (!existsSync(this.#path)) return new Int32Array(0)
    await cache.restore(this.#path)
    const ids = Int32Array.from(JSON.parse(await readFile(this.#idsPath, 'utf8')) as number[])
    if (ids.length === cache.seqLen) {
      note(`${ids.length} tokens restored from ${this.#path}`)
      return ids
    }
    warn(`warning: ${this.#idsPath} is not of ${this.#path}, which is not used`)
    await cache.reset()
    return new Int32Array(0)
  }

  /** Without the ids the old cache is of no use, so they go first and come last. */
  async save(cache: KvCache, ids: Int32Array): Promise<void> {
    await rm(this.#idsPath, { force: true })
    await cache.save(this.#path)
    await writeFile(this.#idsPath, `[${ids.join(',')}]\n`)
  }
}

/** What the logits behind a sequence look like: not finite ones are a broken model or file. */
export interface LogitsReport {
  nan: number
  infinite: number
  min: number
  max: number
  top: number
}

export async function reportLogits(model: Qwen3Nvfp4Model, ids: Int32Array): Promise<LogitsReport> {
  const result = await model.forward(ids, { logits: 'last' })
  const logits = await result.logits.toFloat32Array()
  await result.dispose()
  const report: LogitsReport = { nan: 0, infinite: 0, min: Infinity, max: -Infinity, top: -1 }
  for (const [id, logit] of logits.entries()) {
    if (Number.isNaN(logit)) report.nan++
    else if (!Number.isFinite(logit)) report.infinite++
    else {
      report.min = Math.min(report.min, logit)
      if (logit > report.max) [report.max, report.top] = [logit, id]
    }
  }
  return report
}
