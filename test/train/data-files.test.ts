import { appendFileSync, readdirSync } from 'node:fs'
import { TrainingData, type ChatMessage, type Qwen3Nvfp4Error } from 'qwen3-nvfp4'
import { byteTokenizer, collect, plain, writeData } from '../support/training-data'

const tokenizer = byteTokenizer()

/** What is learned of every sample of a set, in its order. */
async function learned(data: TrainingData): Promise<string[]> {
  const batches = await collect(data, { maxTokens: 1000, shuffle: false })
  return batches.map(({ batch }) => tokenizer.decode(batch.labels[0]!.filter((label) => label !== -100)))
}

/** The texts of a set's samples. */
async function texts(data: TrainingData): Promise<string[]> {
  const batches = await collect(data, { maxTokens: 1000, shuffle: false })
  return batches.map(({ batch }) => tokenizer.decode(batch.ids[0]!))
}

const failure = async (promise: Promise<unknown>): Promise<Qwen3Nvfp4Error> =>
  promise.then(
    () => {
      throw new Error('was not refused')
    },
    (error: Qwen3Nvfp4Error) => error,
  )

const chatLine = (...messages: (ChatMessage | object)[]) => `${JSON.stringify({ messages })}\n`
const user = { role: 'user', content: 'q' } as const

describe('TrainingData.fromTsv', () => {
  const read = (contents: string | Uint8Array, options = {}) =>
    TrainingData.fromTsv(writeData('pairs.tsv', contents), { tokenizer, ...options })

  it('reads a prompt, a tab and an answer a line; comments and empty lines are none', async () => {
    const data = await read('# format: prompt<TAB>target\n\na\tA\n#b\tB\nc\tC')
    expect(data.sampleCount).toBe(2)
    expect(await learned(data)).toEqual(['A<|im_end|>', 'C<|im_end|>'])
  })

  it('reads line ends of Windows and a byte order mark', async () => {
    expect(await learned(await read('\ufeffa\tA\r\nb\tB\r\n'))).toEqual(['A<|im_end|>', 'B<|im_end|>'])
  })

  it('puts a system prompt in front', async () => {
    expect(await texts(await read('a\tA\n', { systemPrompt: 'S' }))).toEqual([
      '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nA<|im_end|>',
    ])
  })

  it('reads several files one behind the other, and lines longer than what is read at once', async () => {
    const long = 'x'.repeat(300_000)
    const files = [writeData('a.tsv', `a\tA\n${long}\tL\nb\tB\n`), writeData('b.tsv', 'c\tC\n')]
    const data = await TrainingData.fromTsv(files, { tokenizer })
    const batches = await collect(data, { maxTokens: 400_000, shuffle: false })
    expect(batches.map(({ batch }) => batch.ids[0]!.length)).toEqual([22, 300_021, 22, 22])
    expect(await learned(await TrainingData.fromTsv(files[1]!, { tokenizer }))).toEqual(['C<|im_end|>'])
  })

  it('gives the same samples from the cache as from the file, and reads no file then', async () => {
    const contents = Array.from({ length: 30 }, (_, i) => `prompt ${i}\tanswer ${i}\n`).join('')
    const settings = { maxTokens: 200, batchSize: 4, epochs: 3, pack: true }
    const cached = await collect(await read(contents), settings)
    expect(plain(await collect(await read(contents, { cacheBytes: 0 }), settings))).toEqual(plain(cached))
    expect(plain(await collect(await read(contents, { cacheBytes: 2000 }), settings))).toEqual(plain(cached))
    const file = writeData('pairs.tsv', contents)
    const data = await TrainingData.fromTsv(file, { tokenizer })
    expect(plain(await collect(data, settings))).toEqual(plain(cached))
    appendFileSync(file, 'more\tlines\n')
    expect(plain(await collect(data, settings))).toEqual(plain(cached))
  })

  it('leaves no file open', async () => {
    const open = () => readdirSync('/proc/self/fd').length
    const before = open()
    const data = await read('a\tA\nb\tB\n')
    for await (const batch of data.batches({ maxTokens: 100, epochs: 5 })) {
      expect(batch.samples).toBe(1)
      break
    }
    await failure(collect(data, { maxTokens: 5 }))
    expect(open()).toBe(before)
  })

  it('has a fingerprint of contents, template and options', async () => {
    const { fingerprint } = await read('a\tA\n')
    expect((await read('a\tA\n')).fingerprint).toBe(fingerprint)
    expect((await read('a\tB\n')).fingerprint).not.toBe(fingerprint)
    expect((await read('a\tA\n', { systemPrompt: 'S' })).fingerprint).not.toBe(fingerprint)
    const other = byteTokenizer("{% for m in messages %}{{ m.role + m.content + '<|im_end|>' }}{% endfor %}")
    expect((await read('a\tA\n', { tokenizer: other })).fingerprint).not.toBe(fingerprint)
  })

  it.each([
    [
      'a line without a tab',
      'a\tA\nno answer\n',
      2,
      'Expected a prompt, one tab and an answer for the line but received 0 tabs: "no answer"',
    ],
    ['a line with two tabs', 'a\tb\tc\n', 1, 'received 2 tabs: "a\\tb\\tc"'],
    ['an empty prompt', '#\n\n \tA\n', 3, 'Expected a prompt for the text before the tab but received none'],
    ['an empty answer', 'a\t \n', 1, 'Expected an answer for the text behind the tab but received none'],
    ['bytes that are not UTF-8', Buffer.from('a\tA\nb\tB\xff\n', 'latin1'), 2, 'not UTF-8: "b\\tB\ufffd"'],
    ['half a character at the end', Buffer.from('a\tA\nb\t你').subarray(0, -1), 2, 'not UTF-8'],
  ])('refuses %s by file, line and text', async (_, contents, line, message) => {
    const error = await failure(read(contents))
    expect(error).toMatchObject({ code: 'TRAINING_DATA_INVALID', line, file: expect.stringMatching(/pairs\.tsv$/) })
    expect(error.message).toContain(`pairs.tsv, line ${line}: `)
    expect(error.message).toContain(message)
  })

  it('shortens long lines in messages', async () => {
    const error = await failure(read('x'.repeat(1000)))
    expect(error.message).toMatch(/: "x{57}\.\.\."$/)
  })

  it('refuses a file without samples, one that is not there, and one that changed', async () => {
    expect(await failure(read('# nothing\n'))).toMatchObject({ code: 'TRAINING_DATA_EMPTY' })
    expect(await failure(read(''))).toMatchObject({ code: 'TRAINING_DATA_EMPTY' })
    expect(await failure(TrainingData.fromTsv('/none.tsv', { tokenizer }))).toMatchObject({ code: 'IO_FAILED' })
    const file = writeData('pairs.tsv', 'a\tA\n')
    const data = await TrainingData.fromTsv(file, { tokenizer })
    appendFileSync(file, 'b\tB\n')
    const error = await failure(collect(data, { maxTokens: 100 }))
    expect(error).toMatchObject({
      code: 'TRAINING_DATA_CHANGED',
      message: `${file} has 8 bytes and had 4 since it was opened; open it again`,
    })
  })

  it('says which line is too long, from the file and from the cache', async () => {
    const data = await read('a\tA\nlonger\tanswer\n')
    const message = /pairs\.tsv, line 2: a sample of 32 tokens, but maxTokens is 30; .*: "longer\\tanswer"$/
    for (const _ of ['file', 'cache']) {
      const error = await failure(collect(data, { maxTokens: 30 }))
      expect(error).toMatchObject({
        code: 'TRAINING_SAMPLE_TOO_LONG',
        line: 2,
        message: expect.stringMatching(message),
      })
    }
    const [first] = await collect(data, { maxTokens: 30, truncate: true, pack: true, batchSize: 2, shuffle: false })
    expect([first!.samples, first!.truncated]).toEqual([2, 1])
  })

  it('says which line has an id beyond the vocabulary, and which answer ends a turn itself', async () => {
    const small = await failure(collect(await read('a\tA\n'), { maxTokens: 100, vocabSize: 256 }))
    expect(small).toMatchObject({ code: 'TRAINING_ID_OUT_OF_RANGE', line: 1 })
    const closed = await failure(collect(await read('a\tA<|im_end|>\n'), { maxTokens: 100 }))
    expect(closed).toMatchObject({ code: 'TRAINING_DATA_INVALID', line: 1 })
    expect(closed.message).toContain('an answer without <|im_end|> in it')
  })

  it.each([
    [{ tokenizer: undefined }, 'Expected a Tokenizer for tokenizer but received undefined'],
    [{ sytemPrompt: 'S' }, 'did you mean systemPrompt?'],
    [{ systemPrompt: '' }, 'a non-empty string for systemPrompt'],
    [{ cacheBytes: -1 }, 'cacheBytes'],
    [{ signal: AbortSignal.abort(new Error('stop')) }, 'stop'],
  ])('refuses options %j', async (options, message) => {
    expect((await failure(read('a\tA\n', options))).message).toContain(message)
  })

  it.each([
    [{ maxTokens: 1 }, 'an integer of at least 2 for maxTokens'],
    [{ maxTokens: 8, batchSize: 0 }, 'for batchSize'],
    [{ maxTokens: 8, epochs: 0 }, 'for epochs'],
    [{ maxTokens: 8, from: { epoch: 0, sample: -1 } }, 'for from.sample'],
    [{ maxTokens: 8, packed: true }, 'did you mean pack?'],
  ])('refuses batch options %j', async (options, message) => {
    const data = await read('a\tA\n')
    expect(() => data.batches(options as never)).toThrow(message)
  })
})

describe('TrainingData.fromChatJsonl', () => {
  const read = (contents: string, options = {}) =>
    TrainingData.fromChatJsonl(writeData('chat.jsonl', contents), { tokenizer, ...options })

  it('learns all answers of each line, or the last ones', async () => {
    const lines =
      chatLine({ role: 'system', content: 'S' }, user, { role: 'assistant', content: 'A' }, user, { role: 'assistant', content: 'B' }) + // prettier-ignore
      '\n' +
      chatLine(user, { role: 'assistant', content: 'C' })
    expect(await learned(await read(lines))).toEqual(['A<|im_end|>B<|im_end|>', 'C<|im_end|>'])
    expect(await learned(await read(lines, { answers: 'last' }))).toEqual(['B<|im_end|>', 'C<|im_end|>'])
  })

  it('renders the tools of a line, or those of the options', async () => {
    const withTools = byteTokenizer(
      "{% if tools %}{{ tools | length }}{% endif %}{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}",
    )
    const messages = [user, { role: 'assistant', content: 'A' }]
    const lines = `${JSON.stringify({ messages, tools: [{}, {}] })}\n${JSON.stringify({ messages, id: 7 })}\n`
    expect(await texts(await read(lines, { tokenizer: withTools, tools: [{}] }))).toEqual([
      '2q<|im_end|>A<|im_end|>',
      '1q<|im_end|>A<|im_end|>',
    ])
  })

  it.each([
    ['what is no JSON', '{"messages": [', /JSON/],
    ['what is no object', '[]', /Expected an object for the line but received an array of 0/],
    ['null', 'null', /Expected an array of messages for messages but received undefined/],
    ['no messages', '{}', /Expected an array of messages/],
    ['a missing role', chatLine({ content: 'q' }), /messages\[0\]\.role but received undefined/],
    ['an unknown role', chatLine({ role: 'bot', content: 'q' }), /one of system, user, assistant, tool .* "bot"/],
    ['missing content', chatLine({ role: 'user' }), /messages\[0\]\.content but received undefined/],
    ['an empty answer', chatLine(user, { role: 'assistant', content: '' }), /not empty for messages\[1\]\.content/],
    ['a question without an answer', chatLine(user), /an answer for the last of messages but received "user"/],
    ['tools that are none', JSON.stringify({ messages: [], tools: 7 }), /an array for tools but received 7/],
  ])('refuses %s by file, line and text', async (_, line, message) => {
    const error = await failure(read(chatLine(user, { role: 'assistant', content: 'A' }) + line))
    expect(error).toMatchObject({ code: 'TRAINING_DATA_INVALID', line: 2 })
    expect(error.message).toMatch(message)
    expect(error.message).toContain('chat.jsonl, line 2: ')
  })

  it('says at which line a template cannot follow, and what to do', async () => {
    const dropping = byteTokenizer(
      "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}",
    )
    const lines = chatLine(user, { role: 'assistant', content: 'A' }, user, { role: 'assistant', content: 'B' })
    const error = await failure(learned(await read(lines, { tokenizer: dropping })))
    expect(error).toMatchObject({ code: 'TRAINING_TEMPLATE_REWRITES', line: 1 })
    expect(error.message).toContain("answers: 'last'")
    expect(await learned(await read(lines, { tokenizer: dropping, answers: 'last' }))).toEqual(['B<|im_end|>'])
  })
})

describe('TrainingData.fromText', () => {
  const read = (contents: string | string[], options = {}) =>
    TrainingData.fromText(
      [contents].flat().map((text, i) => writeData(`text-${i}.txt`, text)),
      { tokenizer, ...options },
    )

  /** All windows put together, each without the id that it shares with the one before it. */
  async function joined(data: TrainingData, maxTokens: number): Promise<string> {
    const windows = (await collect(data, { maxTokens, shuffle: false })).map(({ batch }) => batch.ids[0]!)
    return tokenizer.decode(windows.flatMap((ids, i) => [...ids.subarray(i === 0 ? 0 : 1)]))
  }

  it('puts documents behind each other, each closed by the end token, in windows that predict every id once', async () => {
    const data = await read(['first\ndocument\n', 'second'])
    const whole = 'first\ndocument<|endoftext|>second<|endoftext|>'
    for (const maxTokens of [2, 3, 7, 22, 23, 1000]) {
      expect(await joined(data, maxTokens)).toBe(whole)
      const tokens = (await collect(data, { maxTokens })).map(({ tokens }) => tokens)
      expect(tokens.reduce((sum, count) => sum + count, 0)).toBe(22 - 1)
    }
  })

  it('ends documents at a line of one’s own, and closes them with an id of one’s own', async () => {
    const data = await read('a\n\nb\n---\n\nc\r\n---\n---\n', { separator: '---', endTokenId: 258 })
    expect(await joined(data, 5)).toBe('a\n\nb<|im_end|>c<|im_end|>')
  })

  it('reads long texts as they are, also when runs are left early and overlap', async () => {
    const text = Array.from({ length: 20_000 }, (_, i) => `line ${i}${i % 5 ? '' : '\n'}`).join('\n')
    const data = await read(text)
    for await (const { cursor } of data.batches({ maxTokens: 100, shuffle: false })) if (cursor.sample > 3) break
    const controller = new AbortController()
    const aborted = failure(collect(data, { maxTokens: 50, signal: controller.signal }))
    const [first, second] = [joined(data, 1000), joined(data, 333)]
    setTimeout(() => controller.abort(new Error('stop')), 5)
    expect(await first).toBe(`${text}<|endoftext|>`)
    expect(await second).toBe(`${text}<|endoftext|>`)
    expect((await aborted).message).toBe('stop')
  })

  it('is tokenised in slices between which the event loop runs', async () => {
    const data = await read('words and words\n'.repeat(20_000))
    let turns = 0
    const count = () => {
      turns++
      waiting = setImmediate(count)
    }
    let waiting = setImmediate(count)
    const begin = performance.now()
    expect((await collect(data, { maxTokens: 4000 })).length).toBe(81)
    clearImmediate(waiting)
    // A slice is 2 ms and one piece of text.
    expect(turns).toBeGreaterThan((performance.now() - begin) / 40)
  })

  it('shuffles and resumes', async () => {
    const data = await read(Array.from({ length: 300 }, (_, i) => String.fromCodePoint(0x4e00 + i)).join(''))
    const settings = { maxTokens: 7, batchSize: 4, epochs: 2 }
    const all = await collect(data, settings)
    expect(plain(all)).not.toEqual(plain(await collect(data, { ...settings, shuffle: false })))
    expect(plain(await collect(data, { ...settings, from: all[20]!.cursor }))).toEqual(plain(all.slice(21)))
  })

  it('refuses text without a word, or that is not UTF-8', async () => {
    expect(await failure(read('\n\n'))).toMatchObject({ code: 'TRAINING_DATA_EMPTY' })
    const file = writeData('latin1.txt', Buffer.from('ok\nna\xefve\n', 'latin1'))
    const error = await failure(TrainingData.fromText(file, { tokenizer }))
    expect(error).toMatchObject({ code: 'TRAINING_DATA_INVALID', line: 2 })
    expect(error.message).toBe(`${file}, line 2: not UTF-8: "na\ufffdve"`)
  })
})
