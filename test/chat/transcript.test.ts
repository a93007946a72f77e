import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ChatSession, readTranscript, Tokenizer, writeTranscript } from 'qwen3-nvfp4'
import type { ChatMessage } from 'qwen3-nvfp4'
import { FakeChatModel, scriptedAnswers } from '../support/fake-chat-model'
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny-tokenizer'

const tokenizer = Tokenizer.fromJson(tinyTokenizerJson(), tinyTokenizerConfig())
const answers = scriptedAnswers(['我是 F# 之神', 'two\nlines'], tokenizer.idOf('<|im_start|>')!, tokenizer.eosTokenId!)
const messages: ChatMessage[] = [
  { role: 'system', content: 'S' },
  { role: 'user', content: '你是誰\n"?"' },
  { role: 'assistant', content: '我是 F# 之神' },
]

describe('transcripts', () => {
  let folder: string
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'qn-transcript-'))
  })
  afterEach(() => rm(folder, { recursive: true }))

  test.each(['chat.json', 'chat.jsonl'])('a session stored as %s goes on where it was', async (name) => {
    const path = join(folder, name)
    const model = new FakeChatModel(answers)
    const session = new ChatSession({ model, tokenizer, systemPrompt: 'S' })
    await session.prompt('q')
    await session.saveTranscript(path)
    expect(await readdir(folder)).toEqual([name])
    const again = await ChatSession.load(path, { model, tokenizer })
    expect(again.messages).toEqual(session.messages)
    expect(again.tokenCount).toBe(session.tokenCount)
    expect(again.cache.seqLen).toBe(0)
    await again.prefill()
    expect(again.cache.seqLen).toBe(again.tokenCount)
    const computed = model.prefilledTokens
    expect(await again.prompt('r')).toBe('two\nlines')
    expect(again.cache.seqLen).toBe(again.tokenCount)
    expect(model.prefilledTokens - computed).toBeLessThan(40)
  })

  test('text is for people: roles and contents, which cannot be read back', async () => {
    const path = join(folder, 'chat.txt')
    await writeTranscript(path, messages)
    expect(await readFile(path, 'utf8')).toBe('system:\nS\n\nuser:\n你是誰\n"?"\n\nassistant:\n我是 F# 之神\n')
    await expect(readTranscript(path)).rejects.toMatchObject({ code: 'TRANSCRIPT_INVALID' })
  })

  test('JSON Lines has one message a line', async () => {
    const path = join(folder, 'chat.jsonl')
    await writeTranscript(path, messages)
    const lines = (await readFile(path, 'utf8')).split('\n')
    expect(lines.slice(0, -1).map((line) => JSON.parse(line))).toEqual(messages)
    expect(lines.at(-1)).toBe('')
    expect(await readTranscript(path)).toEqual(messages)
  })

  test('fromJSON takes what toJSON gives', () => {
    const model = new FakeChatModel(answers)
    const session = new ChatSession({ model, tokenizer, messages })
    const again = ChatSession.fromJSON(JSON.parse(JSON.stringify(session)), { model, tokenizer })
    expect(again.messages).toEqual(messages)
  })

  test.each([
    ['a.json', '{"format":"other"}', 'its format is other'],
    ['a.json', '{"format":"qwen3-nvfp4-chat","version":2}', 'only version 1 is known'],
    ['a.json', '{"format":"qwen3-nvfp4-chat","version":1}', 'Expected an array of messages'],
    ['a.json', '{', 'is not JSON'],
    ['a.json', 'null', 'its format is undefined'],
    ['a.jsonl', '{"role":"user","content":"a"}\n{"role":"user","con', 'line 2, is not JSON'],
    ['a.jsonl', '{"role":"robot","content":"a"}\n', 'messages[0].role but received "robot"'],
    ['a.jsonl', '{"role":"user","content":5}\n', 'messages[0].content but received 5'],
  ])('refuses %s with %s', async (name, content, message) => {
    const path = join(folder, name)
    await writeFile(path, content)
    await expect(readTranscript(path)).rejects.toMatchObject({
      code: 'TRANSCRIPT_INVALID',
      message: expect.stringContaining(message),
    })
  })

  test('leaves nothing behind where it cannot write', async () => {
    await expect(writeTranscript(join(folder, 'no', 'chat.json'), messages)).rejects.toMatchObject({
      code: 'IO_FAILED',
    })
    await expect(writeTranscript(folder, messages)).rejects.toMatchObject({ code: 'IO_FAILED' })
    expect(await readdir(folder)).toEqual([])
    await expect(readTranscript(join(folder, 'none.json'))).rejects.toMatchObject({ code: 'IO_FAILED' })
  })
})
