import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Tokenizer } from 'qwen3-nvfp4'
import { describeWithShared, sharedPath } from '../support/files'
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny-tokenizer'

const qwen3 = 'qwen3'

describe('Tokenizer', () => {
  const tokenizer = Tokenizer.fromJson(tinyTokenizerJson(), tinyTokenizerConfig())

  test('recognises special tokens in a text, or leaves them plain', () => {
    const start = tokenizer.idOf('<|im_start|>')!
    expect([...tokenizer.encode('<|im_start|>a')]).toEqual([start, 97])
    expect([...tokenizer.encode('<|im_start|>a', { parseSpecial: false })]).toEqual([...Buffer.from('<|im_start|>a')])
    expect(tokenizer.encode('', { parseSpecial: false })).toHaveLength(0)
  })

  test('decodes any bytes, leaving out special tokens where asked', () => {
    const ids = tokenizer.encode('<|im_start|>神👋<|im_end|>\n')
    expect(tokenizer.decode(ids)).toBe('<|im_start|>神👋<|im_end|>\n')
    expect(tokenizer.decode(ids, { skipSpecialTokens: true })).toBe('神👋\n')
    expect(tokenizer.decode([0xe7, 0xa5])).toBe('\ufffd')
    expect(tokenizer.decode([])).toBe('')
    expect(tokenizer.decode([tokenizer.vocabSize + 5])).toBe('')
  })

  test('knows the ids of its special tokens', () => {
    expect(tokenizer.vocabSize).toBe(259)
    expect(tokenizer.eosTokenId).toBe(tokenizer.idOf('<|im_end|>'))
    expect(tokenizer.padTokenId).toBe(tokenizer.idOf('<|endoftext|>'))
    expect(tokenizer.bosTokenId).toBeUndefined()
    expect(tokenizer.stopTokenIds).toEqual([258, 256])
    expect([256, 257, 258, 97].map((id) => tokenizer.isSpecial(id))).toEqual([true, true, true, false])
  })

  test('renders a conversation by its template', () => {
    const messages = [
      { role: 'system' as const, content: 'S' },
      { role: 'user' as const, content: 'U' },
    ]
    const text = '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n'
    expect(tokenizer.renderChatTemplate(messages)).toBe(text)
    expect(tokenizer.decode(tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true }))).toBe(
      `${text}<|im_start|>assistant\n`,
    )
  })

  test('refuses a conversation without a template rather than guessing one', () => {
    const bare = Tokenizer.fromJson(tinyTokenizerJson())
    expect(() => bare.applyChatTemplate([])).toThrow(expect.objectContaining({ code: 'CHAT_TEMPLATE_MISSING' }))
  })

  test('reports a template that cannot be parsed or that raises', () => {
    const withTemplate = (chat_template: string) => Tokenizer.fromJson(tinyTokenizerJson(), { chat_template })
    const failed = expect.objectContaining({ code: 'CHAT_TEMPLATE_FAILED' })
    expect(() => withTemplate('{% if %}')).toThrow(failed)
    expect(() => withTemplate("{{ raise_exception('no users') }}").applyChatTemplate([])).toThrow(failed)
  })

  test('refuses what is not text, ids, messages or a byte-level tokenizer', () => {
    expect(() => tokenizer.encode(5 as never)).toThrow('Expected a string for text but received 5')
    expect(() => tokenizer.decode([-1])).toThrow('Expected a token id for id but received -1')
    expect(() => tokenizer.decode('a' as never)).toThrow('Expected an array of ids for ids but received "a"')
    expect(() => tokenizer.applyChatTemplate('hi' as never)).toThrow('Expected an array of messages for messages')
    expect(() => tokenizer.applyChatTemplate([{ role: 'bot' as never, content: '' }])).toThrow(
      'Expected one of system, user, assistant, tool for messages[0].role but received "bot"',
    )
    const invalid = expect.objectContaining({ code: 'TOKENIZER_INVALID' })
    expect(() => Tokenizer.fromJson({})).toThrow(invalid)
    expect(() => Tokenizer.fromJson({ ...tinyTokenizerJson(), model: undefined })).toThrow(invalid)
    expect(() => Tokenizer.fromJson(tinyTokenizerJson(), { eos_token: '<eos>' })).toThrow(invalid)
  })

  test('refuses ids that no Int32Array holds, or that would make a table of their size', () => {
    for (const id of [-1, 0.5, 2 ** 24, 2 ** 53, '7', null]) {
      const { model, ...rest } = tinyTokenizerJson() as { model: { vocab: object } }
      const inVocab = { ...rest, model: { ...model, vocab: { ...model.vocab, odd: id } } }
      const inAdded = { ...tinyTokenizerJson(), added_tokens: [{ id, content: 'odd', special: true }] }
      for (const json of [inVocab, inAdded]) {
        expect(() => Tokenizer.fromJson(json)).toThrow(
          expect.objectContaining({
            code: 'TOKENIZER_INVALID',
            message: expect.stringContaining('token odd has the id'),
          }),
        )
      }
    }
  })

  describe('fromFile', () => {
    let folder: string
    beforeEach(async () => {
      folder = await mkdtemp(join(tmpdir(), 'qn-tokenizer-'))
      await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tinyTokenizerJson()))
    })
    afterEach(() => rm(folder, { recursive: true }))

    test('reads a folder or its tokenizer.json, with or without a configuration', async () => {
      expect((await Tokenizer.fromFile(folder)).eosTokenId).toBeUndefined()
      await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(tinyTokenizerConfig()))
      const loaded = await Tokenizer.fromFile(join(folder, 'tokenizer.json'))
      expect(loaded.eosTokenId).toBe(258)
      expect(loaded.chatTemplate).toBeDefined()
    })

    test('prefers a chat_template.jinja beside it', async () => {
      await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(tinyTokenizerConfig()))
      await writeFile(join(folder, 'chat_template.jinja'), '[{{ messages[0].content }}]')
      const loaded = await Tokenizer.fromFile(folder)
      expect(loaded.renderChatTemplate([{ role: 'user', content: 'x' }])).toBe('[x]')
    })

    test('reports a missing or broken file by name', async () => {
      await expect(Tokenizer.fromFile(join(folder, 'no'))).rejects.toMatchObject({ code: 'IO_FAILED' })
      await writeFile(join(folder, 'tokenizer_config.json'), '{')
      await expect(Tokenizer.fromFile(folder)).rejects.toMatchObject({
        code: 'TOKENIZER_INVALID',
        file: join(folder, 'tokenizer_config.json'),
      })
    })
  })
})

describeWithShared("Tokenizer with Qwen3's files", [qwen3], () => {
  let tokenizer: Tokenizer
  beforeAll(async () => {
    tokenizer = await Tokenizer.fromFile(sharedPath(qwen3))
  })

  test('gives the known ids', () => {
    expect([...tokenizer.encode('Hello! 👋')]).toEqual([9707, 0, 61804, 233])
    expect([...tokenizer.encode('Hi! 😊')]).toEqual([13048, 0, 26525, 232])
    expect([...tokenizer.encode('你是誰')]).toEqual([105043, 108908])
    expect(tokenizer.idOf('<|im_start|>')).toBe(151644)
    expect(tokenizer.eosTokenId).toBe(151645)
    expect(tokenizer.padTokenId).toBe(151643)
    expect([...tokenizer.encode('<|im_start|>user\n')].slice(0, 1)).toEqual([151644])
  })

  test('gives back every line of the training sets', async () => {
    const folder = sharedPath('whoami')
    let lines = 0
    for (const file of (await readdir(folder)).sort()) {
      for (const line of (await readFile(join(folder, file), 'utf8')).split('\n')) {
        expect(tokenizer.decode(tokenizer.encode(line))).toBe(line)
        lines++
      }
    }
    expect(lines).toBeGreaterThan(6000)
  })

  test('encodes plain text the same whether or not it looks for special tokens', () => {
    for (const text of ['Hello, world', '  神 123\n\nfoo', "I'm 你是誰?", 'e\u0301']) {
      expect(tokenizer.encode(text, { parseSpecial: false })).toEqual(tokenizer.encode(text))
    }
    const plain = tokenizer.encode('<|im_end|><think>', { parseSpecial: false })
    expect(Math.max(...plain)).toBeLessThan(151643)
    expect(tokenizer.decode(plain)).toBe('<|im_end|><think>')
  })

  test('streams what decode gives', async () => {
    const { TextStream } = await import('qwen3-nvfp4')
    const ids = tokenizer.encode('<|im_start|>我是 F# 之神 👋🏽<|im_end|>\nnaïve')
    const stream = new TextStream(tokenizer, { skipSpecialTokens: false })
    const chunks = [...ids].map((id) => stream.push(id))
    expect(chunks.join('') + stream.flush()).toBe(tokenizer.decode(ids))
    expect(chunks.join('')).not.toContain('\ufffd')
  })

  test('renders turns as the checkpoint was trained on them', () => {
    const text = tokenizer.renderChatTemplate([{ role: 'user', content: '你是誰' }], { addGenerationPrompt: true })
    expect(text).toBe('<|im_start|>user\n你是誰<|im_end|>\n<|im_start|>assistant\n')
  })
})
