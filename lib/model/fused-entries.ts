/** Checkpoints of other runtimes may stack q, k and v, or gate and up, in one tensor: seen here as the tensors apart. */
import type { Qwen3Config } from '../../types/config'
import type { IndexedEntry } from './checkpoint-match'

/** `X.qkv_proj.weight` and its parts become those of `X.q_proj`, `X.k_proj` and `X.v_proj`: ranges of the same bytes. */
export function splitFused(config: Qwen3Config, entries: readonly IndexedEntry[]): IndexedEntry[] {
  const { numAttentionHeads: Q, numKeyValueHeads: KV, headDim: D, intermediateSize: F } = config
  const shards: Record<string, { name: string; rows: number }[]> = {
    qkv_proj: [
      { name: 'q_proj', rows: Q * D },
      { name: 'k_proj', rows: KV * D },
      { name: 'v_proj', rows: KV * D },
    ],
    gate_up_proj: [
      { name: 'gate_proj', rows: F },
      { name: 'up_proj', rows: F },
    ],
  }
  return entries.flatMap((entry) => {
    const [, before, fused, suffix] = /^(.*\.)(qkv_proj|gate_up_proj)(\..*)$/.exec(entry.key) ?? []
    return fused ? split(entry, shards[fused]!, (name) => `${before}${name}${suffix}`) : [entry]
  })
}

/** Rows of a matrix, or one scalar each; a single scalar is every shard's. Another shape is left for the matcher. */
function split(
  entry: IndexedEntry,
  shards: { name: string; rows: number }[],
  keyOf: (name: string) => string,
): IndexedEntry[] {
  const { shape, bytes, offset } = entry
  const [rows = 1, ...others] = shape
  const part = (name: string, shape: number[], from: number, length: number) => {
    return { ...entry, key: keyOf(name), shape, offset: offset + from, bytes: length, storedAs: entry.key }
  }
  if (shape.length < 2) {
    if (rows !== 1 && rows !== shards.length) return [entry]
    const each = bytes / rows
    return shards.map(({ name }, i) => part(name, [], rows === 1 ? 0 : i * each, each))
  }
  const total = shards.reduce((sum, shard) => sum + shard.rows, 0)
  if (rows !== total) return [entry]
  const rowBytes = bytes / rows
  let row = 0
  return shards.map(({ name, rows: count }) => {
    row += count
    return part(name, [count, ...others], (row - count) * rowBytes, count * rowBytes)
  })
}
