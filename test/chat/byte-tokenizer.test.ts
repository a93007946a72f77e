import fc from 'fast-check'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Tokenizer } from 'qwen3-nvfp4'
import type { ChatMessage } from 'qwen3-nvfp4'
import { makeByteTokenizer, writeByteTokenizer } from '../../examples/support/make-byte-tokenizer'
import { describeWithShared, sharedPath } from '../support/files'

const text = 'low low low lower lowest newest newest 神話 神話 神話 之神 2026\n'.repeat(3)
const made = makeByteTokenizer(text, 300)
const tokenizer = Tokenizer.fromJson(made.tokenizerJson, made.tokenizerConfig)

describe('makeByteTokenizer', () => {
  test('gives back any text, known or not', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (any) => {
        expect(tokenizer.decode(tokenizer.encode(any))).toBe(any)
        expect(tokenizer.decode(tokenizer.encode(any, { parseSpecial: false }))).toBe(any)
      }),
      { seed: 5, numRuns: 200 },
    )
    for (const known of [text, ' \t\n\r\n  a', '👋🏽 naïve e\u0301', '<|im_start|>x<|im_end|>', '\u0000\ufeff']) {
      expect(tokenizer.decode(tokenizer.encode(known))).toBe(known)
    }
  })

  test('learns the pairs that occur most, lowest ids first among equals', () => {
    // "l o" and "o w" occur 5 times a line, "e w" and others fewer; l o comes first because l < o.
    const { model } = made.tokenizerJson as { model: { merges: [string, string][]; vocab: Record<string, number> } }
    expect(model.merges.slice(0, 2)).toEqual([
      ['l', 'o'],
      ['lo', 'w'],
    ])
    expect([...tokenizer.encode('low')]).toEqual([260])
    expect(tokenizer.encode(' 神話')).toHaveLength(1)
    expect(Object.values(model.vocab).sort((a, b) => a - b)).toEqual(
      Array.from({ length: made.vocabSize }, (_, id) => id),
    )
  })

  test('keeps the ids of bytes and special tokens whatever the text', () => {
    const other = makeByteTokenizer('something else entirely', 280)
    for (const { tokenizerJson, tokenizerConfig } of [made, other]) {
      const each = Tokenizer.fromJson(tokenizerJson, tokenizerConfig)
      expect(['<|endoftext|>', '<|im_start|>', '<|im_end|>'].map((token) => each.idOf(token))).toEqual([256, 257, 258])
      expect([each.eosTokenId, each.padTokenId]).toEqual([258, 256])
      expect([...each.encode('\u0007A')]).toEqual([7, 65])
    }
  })

  test('stops early when nothing occurs twice, and makes the same again', () => {
    expect(made.vocabSize).toBeLessThan(300)
    expect(made.vocabSize).toBe(tokenizer.vocabSize)
    expect(makeByteTokenizer('abc', 1000).vocabSize).toBe(259)
    expect(JSON.stringify(makeByteTokenizer(text, 300))).toBe(JSON.stringify(made))
    expect(() => makeByteTokenizer(text, 258)).toThrow('Expected an integer of at least 259 for vocabSize')
  })

  test('writes files that load', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'qn-byte-tokenizer-'))
    await writeByteTokenizer(join(folder, 'model'), made)
    const loaded = await Tokenizer.fromFile(join(folder, 'model'))
    expect([...loaded.encode(text)]).toEqual([...tokenizer.encode(text)])
    await rm(folder, { recursive: true })
  })
})

describeWithShared("the byte tokenizer's chat template", ['qwen3'], () => {
  test('renders plain turns as Qwen3 does', async () => {
    const qwen3 = await Tokenizer.fromFile(sharedPath('qwen3'))
    const messages: ChatMessage[] = [
      { role: 'system', content: 'S\n' },
      { role: 'user', content: ' 你是誰 ' },
      { role: 'assistant', content: '我是 F# 之神' },
      { role: 'user', content: '' },
    ]
    for (const addGenerationPrompt of [true, false]) {
      for (const part of [messages, messages.slice(1), messages.slice(0, 3)]) {
        expect(tokenizer.renderChatTemplate(part, { addGenerationPrompt })).toBe(
          qwen3.renderChatTemplate(part, { addGenerationPrompt }),
        )
      }
    }
  })
})
