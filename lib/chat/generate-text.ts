import type { ChatCache, GeneratedText, GenerateTextOptions, TextModel } from '../../types/chat'
import { checkInt32Values, wrongValue } from '../check'
import { StopStringMatcher } from './stop-strings'
import { TextStream } from './text-stream'
import type { Tokenizer } from './tokenizer'

/** Which tokens lie wholly in front of a position of the text. */
class TokenEnds {
  /** Length of the text after each token; of a token that ends inside a character, the infinity of no end. */
  readonly #ends: number[] = []

  add(textLength: number, endsInsideCharacter: boolean): void {
    this.#ends.push(endsInsideCharacter ? Infinity : textLength)
  }

  countWithin(textLength: number): number {
    let count = this.#ends.length
    while (count > 0 && this.#ends[count - 1]! > textLength) count--
    return count
  }
}

/**
 * Continues a prompt and gives the text out token by token, never splitting a character. A stop string ends it: none of
 * it is given out, and a cache that was passed keeps exactly the tokens whose whole text was.
 *
 * `prompt` is text (special tokens in it are recognised) or ids; it follows what the cache holds.
 */
export function generateText(
  model: TextModel,
  tokenizer: Tokenizer,
  prompt: string | Int32Array | readonly number[],
  options: GenerateTextOptions = {},
): AsyncGenerator<GeneratedText, void, undefined> {
  const ids = typeof prompt === 'string' ? tokenizer.encode(prompt) : checkInt32Values('prompt', prompt, 0, 2 ** 31 - 1)
  if (ids.length === 0) throw wrongValue('at least one token', 'prompt', prompt)
  const matcher = new StopStringMatcher(options.stopStrings ?? [])
  return run(model, tokenizer, ids, matcher, options)
}

async function* run(
  model: TextModel,
  tokenizer: Tokenizer,
  ids: Int32Array,
  matcher: StopStringMatcher,
  { stopStrings: _, skipSpecialTokens = true, ...generation }: GenerateTextOptions,
): AsyncGenerator<GeneratedText, void, undefined> {
  const { cache } = generation
  const promptEnd = (cache?.seqLen ?? 0) + ids.length
  const stream = new TextStream(tokenizer, { skipSpecialTokens })
  const ends = new TokenEnds()
  let decoded = 0
  let given = 0
  let last: GeneratedText | undefined
  const stopTokens = generation.stopTokens ?? defaultStopTokens(tokenizer)
  for await (const token of model.generate(ids, { ...generation, stopTokens })) {
    let chunk = token.finishReason === 'stop-token' ? '' : stream.push(token.id)
    if (token.finishReason) chunk += stream.flush()
    decoded += chunk.length
    ends.add(decoded, stream.pendingBytes > 0)
    const { text, matched } = matcher.push(chunk)
    const piece = { ...token, text: token.finishReason && !matched ? text + matcher.flush() : text }
    given += piece.text.length
    if (matched) {
      last = { ...piece, finishReason: 'stop-string', stopString: matched }
      break
    }
    yield piece
  }
  if (!last) return
  // Leaving the loop has waited for the model to stop, so the cache grows no more.
  if (cache) await truncateTo(cache, promptEnd + ends.countWithin(given))
  yield last
}

const defaultStopTokens = (tokenizer: Tokenizer) =>
  tokenizer.stopTokenIds.length > 0 ? tokenizer.stopTokenIds : undefined

/** Drops what lies behind `tokens` positions, if anything does. */
export async function truncateTo(cache: ChatCache, tokens: number): Promise<void> {
  if (cache.seqLen > tokens) await cache.truncate(tokens)
}
