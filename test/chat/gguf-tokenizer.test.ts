import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Tokenizer } from 'qwen3-nvfp4'
import { describeWithShared, sharedPath, temporaryFolder } from '../support/files'
import { writeGguf, type Value } from '../support/gguf'
import { ggufTokenizer } from '../support/gguf-model'
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny-tokenizer'

const text = 'Hello, world!\n  “é” 你好 👋 <|im_start|>user<|im_end|>'

function write(...changes: [string, Value][]): string {
  const metadata = [...new Map([...ggufTokenizer(tinyTokenizerJson(), 300), ...changes])]
  return writeGguf(join(temporaryFolder(), 'x.gguf'), { metadata })
}

test('a GGUF gives the tokenizer that tokenizer.json gives, with its special tokens and chat template', async () => {
  const tokenizer = await Tokenizer.fromFile(write())
  const own = Tokenizer.fromJson(tinyTokenizerJson(), tinyTokenizerConfig())
  expect(tokenizer.encode(text)).toEqual(own.encode(text))
  expect(tokenizer.encode(text, { parseSpecial: false })).toEqual(own.encode(text, { parseSpecial: false }))
  expect(tokenizer.decode(own.encode(text))).toBe(text)
  expect(tokenizer).toMatchObject({ vocabSize: 259, eosTokenId: 258, padTokenId: 256, stopTokenIds: [258, 256] })
  expect(tokenizer.bosTokenId).toBeUndefined()
  const messages = [{ role: 'user', content: 'hi' }] as const
  const options = { addGenerationPrompt: true }
  expect(tokenizer.applyChatTemplate(messages, options)).toEqual(own.applyChatTemplate(messages, options))
})

test.each<[string, [string, Value], RegExp]>([
  ['another model', ['tokenizer.ggml.model', ['string', 'llama']], /"gpt2" for tokenizer.ggml.model .*llama/],
  ['another way to split', ['tokenizer.ggml.pre', ['string', 'llama-bpe']], /"qwen2" for tokenizer.ggml.pre/],
  ['no tokens', ['tokenizer.ggml.tokens', ['u32', 1]], /tokenizer.ggml.tokens/],
  ['types of other tokens', ['tokenizer.ggml.token_type', ['numbers', Int32Array.of(1)]], /300 int32/],
  ['a merge of one token', ['tokenizer.ggml.merges', ['strings', ['ab']]], /tokenizer.ggml.merges/],
  ['an end past the tokens', ['tokenizer.ggml.eos_token_id', ['u32', 300]], /eos_token_id/],
])('%s is refused', async (_, change, message) => {
  await expect(Tokenizer.fromFile(write(change))).rejects.toMatchObject({
    code: 'TOKENIZER_INVALID',
    message: expect.stringMatching(message) as string,
  })
})

describeWithShared('the tokenizer of Qwen3 in a GGUF', ['qwen3', 'tokenizer.json'], () => {
  test('gives the same ids as tokenizer.json on whole data sets', async () => {
    const json = JSON.parse(readFileSync(sharedPath('qwen3', 'tokenizer.json'), 'utf8')) as Record<string, unknown>
    const path = writeGguf(join(temporaryFolder(), 'x.gguf'), { metadata: ggufTokenizer(json, 151936) })
    const tokenizer = await Tokenizer.fromFile(path)
    const own = await Tokenizer.fromFile(sharedPath('qwen3'))
    expect(tokenizer.vocabSize).toBe(own.vocabSize)
    for (const text of ['Hello! 👋', '你是誰', 'naïve café\r\n\r\n  x = 12345;', '<think>\n</think><|im_end|>']) {
      expect(tokenizer.encode(text)).toEqual(own.encode(text))
    }
    const folder = sharedPath('whoami')
    for (const name of readdirSync(folder)) {
      const lines = readFileSync(join(folder, name), 'utf8').slice(0, 60_000)
      expect(tokenizer.encode(lines)).toEqual(own.encode(lines))
    }
  })
})
