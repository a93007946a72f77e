import { ChatSession, Tokenizer } from 'qwen3-nvfp4'
import type { ChatSessionOptions } from 'qwen3-nvfp4'
import { FakeCache, FakeChatModel, hashedBytes, scriptedAnswers } from '../support/fake-chat-model'
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny-tokenizer'

const tokenizer = Tokenizer.fromJson(tinyTokenizerJson(), tinyTokenizerConfig())
const startId = tokenizer.idOf('<|im_start|>')!
const stopId = tokenizer.eosTokenId!

/** Drops the thoughts of every answer but the last, as thinking templates do. */
const thinkingTokenizer = Tokenizer.fromJson(tinyTokenizerJson(), {
  eos_token: '<|im_end|>',
  chat_template:
    '{% for m in messages %}{% set text = m.content %}' +
    "{% if not loop.last and '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}" +
    "{{ '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}{% endfor %}" +
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
})

const scripted = (...answers: string[]) => new FakeChatModel(scriptedAnswers(answers, startId, stopId))
const open = (model: FakeChatModel, options: Partial<ChatSessionOptions> = {}) =>
  new ChatSession({ model, tokenizer, ...options })
const cacheOf = (session: ChatSession) => session.cache as FakeCache

/** The two promises of every turn: the cache holds the rendered conversation, and the session knows its length. */
function expectInStep(session: ChatSession, by = tokenizer): void {
  expect(cacheOf(session).ids).toEqual([...by.applyChatTemplate(session.messages)])
  expect(session.tokenCount).toBe(cacheOf(session).seqLen)
}

describe('ChatSession', () => {
  test('keeps the cache across turns and computes only what is new', async () => {
    const model = scripted('你好 👋', 'second', 'third')
    const session = open(model, { systemPrompt: 'Be brief.' })
    const questions = ['Hello', '還好嗎', 'bye']
    const answers: string[] = []
    for (const [i, question] of questions.entries()) {
      const before = session.tokenCount
      const computed = model.prefilledTokens
      answers.push(await session.prompt(question))
      expectInStep(session)
      const header = i === 0 ? '<|im_start|>system\nBe brief.<|im_end|>\n' : ''
      const added = `${header}<|im_start|>user\n${question}<|im_end|>\n<|im_start|>assistant\n`
      const closing = 2
      expect(model.prefilledTokens - computed).toBe(tokenizer.encode(added).length + closing)
      expect(session.lastTurn).toMatchObject({ cachedTokens: before, finishReason: 'stop-token', answer: answers[i] })
    }
    expect(answers).toEqual(['你好 👋', 'second', 'third'])
    expect(session.messages.map((message) => message.role)).toEqual([
      'system',
      ...['user', 'assistant', 'user', 'assistant', 'user', 'assistant'],
    ])
  })

  test('streams the answer and calls onText with the same pieces', async () => {
    const pieces: string[] = []
    for await (const text of open(scripted('a神!')).stream('q')) pieces.push(text)
    expect(pieces).toEqual(['a', '神', '!'])
    const heard: string[] = []
    expect(await open(scripted('a神!')).prompt('q', { onText: (text) => heard.push(text) })).toBe('a神!')
    expect(heard).toEqual(pieces)
  })

  test('stays in step with the template whatever bytes the model writes', async () => {
    for (let seed = 0; seed < 60; seed++) {
      const session = open(new FakeChatModel(hashedBytes(seed, stopId)), { contextTokens: 4000 })
      for (const question of ['one', 'two', 'three']) {
        await session.prompt(question, { maxTokens: 30 })
        expectInStep(session)
      }
    }
  })

  test('computes again from where a template rewrites an earlier turn', async () => {
    const model = scripted('<think>hm</think>yes', 'no')
    const session = open(model, { tokenizer: thinkingTokenizer })
    await session.prompt('first')
    expect(cacheOf(session).ids).toEqual([...thinkingTokenizer.applyChatTemplate(session.messages)])
    await session.prompt('second')
    expectInStep(session, thinkingTokenizer)
    expect(tokenizer.decode(cacheOf(session).ids)).not.toContain('<think>')
    const kept = tokenizer.encode('<|im_start|>user\nfirst<|im_end|>\n<|im_start|>assistant\n').length
    expect(session.lastTurn!.cachedTokens).toBe(kept)
  })

  test('ends an answer before a stop string', async () => {
    const session = open(scripted('fine. User: hi', 'next'), { generation: { stopStrings: [' User:'] } })
    expect(await session.prompt('q')).toBe('fine.')
    expect(session.lastTurn!.finishReason).toBe('stop-string')
    expectInStep(session)
    expect(await session.prompt('q')).toBe('next')
    expectInStep(session)
  })

  test('ends an answer at maxTokens with its turn closed', async () => {
    const session = open(scripted('long answer'))
    expect(await session.prompt('q', { maxTokens: 4 })).toBe('long')
    expect(session.lastTurn!.finishReason).toBe('max-tokens')
    expectInStep(session)
  })

  describe.each([
    ['aborted', (model: FakeChatModel) => void model],
    ['failed', (model: FakeChatModel) => (model.failAfter = 3)],
  ])('a turn that is %s', (kind, arrange) => {
    const start = async (by: Tokenizer, keepPartial: boolean) => {
      const model = scripted('<think>x</think>ok', 'abcdefgh', 'again')
      const session = open(model, { tokenizer: by })
      await session.prompt('first')
      const before = { json: JSON.stringify(session), ids: [...cacheOf(session).ids], count: session.tokenCount }
      arrange(model)
      const controller = new AbortController()
      let heard = ''
      const turn = session.prompt('second', {
        keepPartial,
        signal: controller.signal,
        onText: (text) => {
          heard += text
          if (kind === 'aborted' && heard.length === 3) controller.abort(new Error('enough'))
        },
      })
      return { model, session, before, turn, heard: () => heard }
    }

    test.each([
      ['a plain template', tokenizer],
      ['one that rewrites the turn before', thinkingTokenizer],
    ])('leaves session and cache as they were, with %s', async (_name, by) => {
      const { model, session, before, turn, heard } = await start(by, false)
      await expect(turn).rejects.toThrow(kind === 'aborted' ? 'enough' : 'the model failed')
      expect(heard()).toBe('abc')
      expect(JSON.stringify(session)).toBe(before.json)
      expect(cacheOf(session).ids).toEqual(before.ids)
      expect(session.tokenCount).toBe(before.count)
      model.failAfter = Infinity
      expect(await session.prompt('second')).toBe('abcdefgh')
      expectInStep(session, by)
    })

    test('keeps its text where that was asked for', async () => {
      const { session, turn } = await start(tokenizer, true)
      if (kind === 'aborted') expect(await turn).toBe('abc')
      else await expect(turn).rejects.toThrow('the model failed')
      expect(session.messages.at(-1)).toEqual({ role: 'assistant', content: 'abc' })
      expect(session.lastTurn!.finishReason).toBe('aborted')
      expectInStep(session)
    })
  })

  test('rolls back when the reader leaves early, or keeps what was read', async () => {
    for (const keepPartial of [false, true]) {
      const session = open(scripted('abcdef', 'next'))
      for await (const text of session.stream('q', { keepPartial })) if (text === 'b') break
      if (!keepPartial) expect([session.tokenCount, session.cache.seqLen, session.messages]).toEqual([0, 0, []])
      else expectInStep(session)
      expect(session.messages.at(-1)?.content).toBe(keepPartial ? 'ab' : undefined)
      await session.prompt('r')
      expectInStep(session)
    }
  })

  test('does not begin a turn whose signal is aborted already', async () => {
    const model = scripted('a')
    const signal = AbortSignal.abort(new Error('never'))
    await expect(open(model).prompt('q', { signal })).rejects.toThrow('never')
    expect(model.prefilledTokens).toBe(0)
  })

  test('recovers from a failure while the turn is closed, and while it is rolled back', async () => {
    const model = scripted('one', 'two')
    const session = open(model)
    await session.prompt('first')
    const before = JSON.stringify(session)
    model.failForward = true
    await expect(session.prompt('second')).rejects.toThrow('forward failed')
    expect(JSON.stringify(session)).toBe(before)
    model.failForward = false
    expect(await session.prompt('second')).toBe('two')
    expectInStep(session)
  })

  test('says how many tokens a full cache lacks, and changes nothing', async () => {
    const model = scripted('ok')
    const session = open(model, { contextTokens: 50 })
    await session.prompt('q')
    const held = session.tokenCount
    const question = 'x'.repeat(30)
    const needed = tokenizer.encode(`<|im_start|>user\n${question}<|im_end|>\n<|im_start|>assistant\n`).length + 3
    await expect(session.prompt(question)).rejects.toMatchObject({
      code: 'CACHE_FULL',
      message: expect.stringContaining(
        `needs ${needed} more tokens but the cache has room for ${50 - held} (50 in all)`,
      ),
    })
    expect(session.cache.seqLen).toBe(held)
    expectInStep(session)
  })

  test('ends an answer that fills the cache, its turn closed', async () => {
    const session = open(scripted('x'.repeat(100)), { contextTokens: 40 })
    await session.prompt('q')
    expect(session.lastTurn!.finishReason).toBe('cache-full')
    expect(session.cache.seqLen).toBe(40)
    expectInStep(session)
  })

  test('refuses a second turn at once, a changed cache, and anything after dispose', async () => {
    const session = open(scripted('abc', 'def'))
    const first = session.prompt('q')
    await expect(session.prompt('r')).rejects.toMatchObject({ code: 'BUSY' })
    await expect(session.dispose()).rejects.toMatchObject({ code: 'BUSY' })
    expect(await first).toBe('abc')
    cacheOf(session).truncate(3)
    await expect(session.prompt('r')).rejects.toMatchObject({ code: 'STATE_MISMATCH' })
    await session.reset()
    expect(await session.prompt('q')).toBe('abc')
    const { cache } = session
    await session.dispose()
    await session.dispose()
    expect((cache as FakeCache).disposed).toBe(true)
    await expect(session.prompt('r')).rejects.toMatchObject({ code: 'DISPOSED' })
  })

  test('uses a cache it is given and leaves it to its owner', async () => {
    const cache = new FakeCache(200)
    const session = open(scripted('hi'), { cache })
    await session.prompt('q')
    expectInStep(session)
    await session.dispose()
    expect(cache.disposed).toBe(false)
    expect(() => open(scripted(), { cache })).toThrow('Expected an empty cache for cache')
  })

  test('goes on with a restored cache and computes only what it does not hold', async () => {
    const first = open(scripted('hi', 'again'), { systemPrompt: 'S' })
    await first.prompt('q')
    const cache = new FakeCache(200)
    cache.ids = [...cacheOf(first).ids]
    const model = scripted('hi', 'again')
    const second = open(model, { messages: first.messages, cache, cacheIds: first.cacheIds })
    expect(await second.prompt('r')).toBe('again')
    expect(second.lastTurn!.cachedTokens).toBe(first.tokenCount)
    expectInStep(second)
    // Another conversation keeps what it has in common: here the system prompt.
    const third = open(scripted('hi'), { systemPrompt: 'S', cache, cacheIds: second.cacheIds })
    expect(await third.prompt('p')).toBe('hi')
    expect(third.lastTurn!.cachedTokens).toBeGreaterThan(0)
    expectInStep(third)
    expect(() => open(model, { cache, cacheIds: [1] })).toThrow(
      'Expected a cache of 1 tokens, as cacheIds has, for cache',
    )
    expect(() => open(model, { cacheIds: [1] })).toThrow('Expected nothing without a cache for cacheIds')
  })

  test('goes back to the system prompt on reset', async () => {
    const session = open(scripted('a', 'b'), { systemPrompt: 'S' })
    await session.prompt('q')
    await session.reset()
    expect(session.messages).toEqual([{ role: 'system', content: 'S' }])
    expect([session.tokenCount, session.cache.seqLen]).toEqual([0, 0])
    expect(await session.prompt('q')).toBe('a')
  })

  test('takes messages of other roles as a turn, and tells the repetition penalty what came before', async () => {
    const model = scripted('a', 'b')
    const session = open(model)
    await session.prompt('q')
    await session.prompt([{ role: 'tool', content: '42' }], { repetitionPenalty: 1.1 })
    expect(session.messages.map((message) => message.role)).toEqual(['user', 'assistant', 'tool', 'assistant'])
    expect(model.lastOptions!.history).toHaveLength(session.lastTurn!.cachedTokens)
    expectInStep(session)
  })

  test('refuses wrong arguments before anything runs', async () => {
    const model = scripted('a')
    const session = open(model)
    await expect(session.prompt(5 as never)).rejects.toThrow('Expected a message for input[0] but received 5')
    await expect(session.prompt([])).rejects.toThrow('Expected at least one message for input')
    await expect(session.prompt('q', { maxTokens: 0 })).rejects.toThrow(/for maxTokens/)
    await expect(session.prompt('q', { signal: 1 as never })).rejects.toThrow('Expected an AbortSignal for signal')
    await expect(session.prompt('q', { stopStrings: [''] })).rejects.toThrow(/for stopStrings\[0\]/)
    expect(() => open(model, { contextTokens: 0 })).toThrow(/for contextTokens/)
    expect(() => open(model, { sytemPrompt: 'x' } as never)).toThrow(/did you mean systemPrompt/)
    expect(() => new ChatSession({ tokenizer } as never)).toThrow('Expected a model for model but received undefined')
    expect(() => open(model, { systemPrompt: 'a', messages: [{ role: 'system', content: 'b' }] })).toThrow(RangeError)
    expect(model.prefilledTokens).toBe(0)
  })
})
