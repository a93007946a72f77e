import { generateText, Tokenizer } from 'qwen3-nvfp4'
import type { GeneratedText, GenerateTextOptions } from 'qwen3-nvfp4'
import { FakeCache, FakeChatModel, hashedBytes } from '../support/fake-chat-model'
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny-tokenizer'

const tokenizer = Tokenizer.fromJson(tinyTokenizerJson(), tinyTokenizerConfig())
const stopId = tokenizer.eosTokenId!

/** A model that writes these bytes after any prompt of one token, then ends. */
const writing = (text: string | Uint8Array) => {
  const bytes = [...Buffer.from(text as string), stopId]
  return new FakeChatModel((ids) => bytes[ids.length - 1]!)
}

async function collect(model: FakeChatModel, options: GenerateTextOptions = {}): Promise<GeneratedText[]> {
  const pieces: GeneratedText[] = []
  for await (const piece of generateText(model, tokenizer, 'p', options)) pieces.push(piece)
  return pieces
}

const joined = (pieces: GeneratedText[]) => pieces.map((piece) => piece.text).join('')

describe('generateText', () => {
  test('gives every token its text, a character with the last of its tokens', async () => {
    const pieces = await collect(writing('a神'))
    expect(pieces.map(({ text, id, index }) => [text, id, index])).toEqual([
      ['a', 97, 0],
      ['', 0xe7, 1],
      ['', 0xa5, 2],
      ['神', 0x9e, 3],
      ['', stopId, 4],
    ])
    expect(pieces.map((piece) => piece.finishReason)).toEqual([
      undefined,
      undefined,
      undefined,
      undefined,
      'stop-token',
    ])
    expect(pieces[0]!.logprob).toBe(-0.5)
  })

  test('flushes an unfinished character with the last token', async () => {
    const pieces = await collect(writing('ab神'), { maxTokens: 4 })
    expect(joined(pieces)).toBe('ab\ufffd')
    expect(pieces.at(-1)).toMatchObject({ text: '\ufffd', finishReason: 'max-tokens' })
  })

  test('ends before a stop string and keeps in the cache exactly the tokens whose text was given', async () => {
    for (const lead of [0, 1, 50]) {
      const model = writing('one two\nUser: three')
      model.lead = lead
      const cache = new FakeCache(100)
      const pieces = await collect(model, { cache, stopStrings: ['\nUser:'] })
      expect(joined(pieces)).toBe('one two')
      expect(pieces.at(-1)).toMatchObject({ finishReason: 'stop-string', stopString: '\nUser:' })
      expect(tokenizer.decode(cache.ids)).toBe('pone two')
    }
  })

  test('does not keep the beginning of a character that the stop string cuts off', async () => {
    const cache = new FakeCache(100)
    const pieces = await collect(writing('ab神cd'), { cache, stopStrings: ['神'] })
    expect(joined(pieces)).toBe('ab')
    expect(tokenizer.decode(cache.ids)).toBe('pab')
  })

  test('gives out text that only looked like a stop string', async () => {
    expect(joined(await collect(writing('a\nUse'), { stopStrings: ['\nUser:'] }))).toBe('a\nUse')
  })

  test('passes sampling on, stops at the tokenizer’s stop tokens and continues a cache', async () => {
    const model = writing('xy')
    const cache = new FakeCache(100)
    await collect(model, { cache, temperature: 0.5, seed: 3, stopStrings: ['q'] })
    expect(model.lastOptions).toEqual({ cache, temperature: 0.5, seed: 3, stopTokens: [stopId, 256] })
    expect(cache.seqLen).toBe(3)
  })

  test('gives the same as decoding all ids, for any bytes', async () => {
    for (let seed = 0; seed < 200; seed++) {
      const pieces = await collect(new FakeChatModel(hashedBytes(seed, stopId)), { maxTokens: 40 })
      const ids = pieces.filter((piece) => piece.finishReason !== 'stop-token').map((piece) => piece.id)
      expect(joined(pieces)).toBe(tokenizer.decode(ids))
    }
  })

  test('refuses an empty or wrong prompt before anything runs', () => {
    const model = writing('')
    expect(() => generateText(model, tokenizer, '')).toThrow('Expected at least one token for prompt but received ""')
    expect(() => generateText(model, tokenizer, [1.5])).toThrow(RangeError)
    expect(() => generateText(model, tokenizer, 'a', { stopStrings: [''] })).toThrow(RangeError)
    expect(model.prefilledTokens).toBe(0)
  })
})
