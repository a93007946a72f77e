/**
 * A tokenizer without the tokens that some texts do not use: those texts have the same tokens under fewer ids, so that a model of
 * them is small enough for a CPU.
 */
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Tokenizer } from 'qwen3-nvfp4'

interface TokenizerJson {
  added_tokens: { id: number; content: string }[]
  model: { vocab: Record<string, number>; merges: [string, string][] }
}

/** Every token that is a part of these, by the merges that make it. */
function withParts(tokens: Iterable<string>, merges: readonly [string, string][]): Set<string> {
  const partsOf = new Map<string, string[]>()
  for (const [left, right] of merges) partsOf.set(left + right, [...(partsOf.get(left + right) ?? []), left, right])
  const found = new Set<string>()
  const open = [...tokens]
  for (let token = open.pop(); token !== undefined; token = open.pop()) {
    if (found.has(token)) continue
    found.add(token)
    open.push(...(partsOf.get(token) ?? []))
  }
  return found
}

/** Writes it into `folder`, and returns how many ids it has. */
export async function cutTokenizer(source: string, texts: readonly string[], folder: string): Promise<number> {
  const tokenizer = await Tokenizer.fromFile(source)
  const json = JSON.parse(await readFile(join(source, 'tokenizer.json'), 'utf8')) as TokenizerJson
  const tokens = Object.entries(json.model.vocab).sort(([, a], [, b]) => a - b)
  const textOf = new Map(tokens.map(([token, id]) => [id, token]))
  const used = new Set(texts.flatMap((text) => [...tokenizer.encode(text)]).flatMap((id) => textOf.get(id) ?? []))
  const kept = withParts(used, json.model.merges)
  const bytes = 256
  const vocab = tokens.filter(([token, id]) => id < bytes || kept.has(token)).map(([token]) => token)
  json.model.vocab = Object.fromEntries(vocab.map((token, id) => [token, id]))
  json.model.merges = json.model.merges.filter(([left, right]) => kept.has(left + right))
  json.added_tokens = json.added_tokens.map((token, i) => ({ ...token, id: vocab.length + i }))
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(json))
  const config = JSON.parse(await readFile(join(source, 'tokenizer_config.json'), 'utf8')) as object
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ ...config, added_tokens_decoder: undefined }))
  return vocab.length + json.added_tokens.length
}
