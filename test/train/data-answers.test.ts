import { readFileSync } from 'node:fs'
import { ChatSession, TrainingData, Tokenizer, answerSample, type ChatMessage } from 'qwen3-nvfp4'
import { describeWithShared, sharedPath } from '../support/files'
import { type FakeCache, FakeChatModel, scriptedAnswers } from '../support/fake-chat-model'
import { byteTokenizer, collect, writeData } from '../support/training-data'

const user = (content: string): ChatMessage => ({ role: 'user', content })
const assistant = (content: string): ChatMessage => ({ role: 'assistant', content })
const system = (content: string): ChatMessage => ({ role: 'system', content })

/** The texts of the runs of labels that count. */
function learned(tokenizer: Tokenizer, { ids, labels }: { ids: Int32Array; labels: Int32Array }): string[] {
  const texts: number[][] = []
  labels.forEach((label, t) => {
    if (label === -100) return
    expect(label).toBe(ids[t])
    if (t === 0 || labels[t - 1] === -100) texts.push([])
    texts.at(-1)!.push(label)
  })
  return texts.map((run) => tokenizer.decode(run))
}

/** As Qwen3's thinking template does: an empty thought before the last answer, none before earlier ones. */
const thinkingTemplate =
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}" +
  "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}" +
  "{{ m.content + '<|im_end|>\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}" +
  "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"

describe('answerSample', () => {
  const tokenizer = byteTokenizer()

  it('gives labels to the answer and the token that closes it alone', () => {
    const sample = answerSample(tokenizer, [user('hi'), assistant('yes')])
    expect(tokenizer.decode(sample.ids)).toBe('<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>')
    expect(learned(tokenizer, sample)).toEqual(['yes<|im_end|>'])
  })

  it('learns every answer of a conversation, or the last one', () => {
    const messages = [system('be brief'), user('a'), assistant('A'), user('b'), assistant('B')]
    expect(learned(tokenizer, answerSample(tokenizer, messages))).toEqual(['A<|im_end|>', 'B<|im_end|>'])
    const last = answerSample(tokenizer, messages, { answers: 'last' })
    expect(learned(tokenizer, last)).toEqual(['B<|im_end|>'])
    expect(last.ids).toEqual(answerSample(tokenizer, messages).ids)
  })

  it('has the ids that a session computes before and behind the answer', async () => {
    const model = new FakeChatModel(
      scriptedAnswers(['yes', 'no'], tokenizer.idOf('<|im_start|>')!, tokenizer.eosTokenId!),
    )
    const session = new ChatSession({ model, tokenizer, systemPrompt: 'be brief' })
    await session.prompt('hi')
    await session.prompt('really?')
    const { ids } = answerSample(tokenizer, session.messages)
    expect((session.cache as FakeCache).ids.slice(0, ids.length)).toEqual([...ids])
  })

  it('keeps a line break that begins an answer apart from the one that ends the prompt', () => {
    const { ids, labels } = answerSample(tokenizer, [user('hi'), assistant('\n\nyes')])
    const prompt = tokenizer.applyChatTemplate([user('hi')], { addGenerationPrompt: true })
    expect([...labels.subarray(0, prompt.length)].every((label) => label === -100)).toBe(true)
    expect([...ids.subarray(0, prompt.length)]).toEqual([...prompt])
  })

  it('learns only the last answer where a template rewrites earlier ones, and says so', () => {
    const thinking = byteTokenizer(thinkingTemplate)
    const messages = [user('a'), assistant('A'), user('b'), assistant('B')]
    expect(() => answerSample(thinking, messages)).toThrow(
      expect.objectContaining({
        code: 'TRAINING_TEMPLATE_REWRITES',
        message: expect.stringMatching(/before messages\[3\].*answers: 'last'/),
      }),
    )
    const served = answerSample(thinking, messages, { answers: 'last', enableThinking: false })
    expect(learned(thinking, served)).toEqual(['B<|im_end|>'])
    const open = answerSample(thinking, messages, { answers: 'last' })
    expect(learned(thinking, open)).toEqual(['<think>\n\n</think>\n\nB<|im_end|>'])
  })

  it('refuses templates that do not continue their own prompt or never close an answer', () => {
    const other = byteTokenizer(
      "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}{{ add_generation_prompt }}",
    )
    expect(() => answerSample(other, [user('a'), assistant('A')])).toThrow(
      /does not continue the prompt of messages\[1\]/,
    )
    const endless = byteTokenizer('{% for m in messages %}{{ m.content }}{% endfor %}')
    expect(() => answerSample(endless, [user('a'), assistant('A')])).toThrow(
      /puts none of <\|im_end\|>, .* behind an answer/,
    )
  })

  it.each([
    ['no answer', [user('a')], /Expected an answer for the last of messages but received "user"/],
    ['an empty answer', [user('a'), assistant(' ')], /not empty for messages\[1\].content/],
    ['nothing before the answer', [assistant('A')], /before the first answer/],
    ['no messages', [], /the last of messages but received undefined/],
    ['a message without a role', [{ content: 'a' } as ChatMessage], /messages\[0\].role but received undefined/],
    ['the end of a turn inside an answer', [user('a'), assistant('A<|im_end|>b')], /without <\|im_end\|> in it/],
  ])('refuses %s', (_, messages, expected) => {
    expect(() => answerSample(tokenizer, messages)).toThrow(expected)
  })

  it('gives the same ids whether long texts are cut into pieces or not', () => {
    const long = Array.from({ length: 900 }, (_, i) => `word${i}${i % 7 ? ' ' : '\n'}`).join('')
    const { ids } = answerSample(tokenizer, [user(long), assistant(long)])
    const whole = tokenizer.applyChatTemplate([user(long), assistant(long)])
    expect([...ids]).toEqual([...whole.subarray(0, ids.length)])
  })
})

describeWithShared('answers with the tokenizer of Qwen3', ['qwen3', 'tokenizer.json'], () => {
  let tokenizer: Tokenizer
  beforeAll(async () => {
    tokenizer = await Tokenizer.fromFile(sharedPath('qwen3'))
  })

  it('has the known ids of the identity answer', () => {
    const { ids, labels } = answerSample(tokenizer, [user('你是誰'), assistant('我是 F# 之神')])
    // prettier-ignore
    expect([...ids]).toEqual([
      151644, 872, 198, 105043, 108908, 151645, 198, 151644, 77091, 198, 104198, 434, 2, 220, 53930, 99315, 151645,
    ])
    expect([...labels]).toEqual([...ids].map((id, t) => (t < 10 ? -100 : id)))
  })

  it.each([
    ['one turn', [user('談談UFO'), assistant('UFO 是不明飛行物。')]],
    ['a system prompt', [system('Answer briefly.'), user('Hello! 👋'), assistant('Hi! 😊')]],
    [
      'several turns',
      [user('a\n\nb'), assistant('  indented\n\n'), user('\nc '), assistant('d\n'), user('e'), assistant('f')],
    ],
  ])('is the served prompt, the answer and its closing token: %s', (_, messages) => {
    const { ids } = answerSample(tokenizer, messages)
    const prompt = tokenizer.applyChatTemplate(messages.slice(0, -1), {
      addGenerationPrompt: true,
      enableThinking: false,
    })
    const answer = tokenizer.encode(messages.at(-1)!.content)
    expect([...ids]).toEqual([...prompt, ...answer, 151645])
  })

  it('cuts long texts where their ids stay the same', async () => {
    for (const name of ['docs/numerics.md', 'lib/chat/session.ts', 'examples/data/corpus.txt', 'README.md']) {
      const text = readFileSync(name, 'utf8')
      const data = await TrainingData.fromText(writeData('text.txt', text), { tokenizer })
      const [first] = await collect(data, { maxTokens: 100_000, shuffle: false })
      expect([...first!.batch.ids[0]!]).toEqual([...tokenizer.encode(text.replace(/\n$/, '')), 151643])
    }
    // No line breaks, few spaces.
    const chinese = '飛碟，是不明飛行物的簡稱；大部分的目擊，後來都有普通的解釋：例如行星、氣球或飛機。'.repeat(100)
    const { ids } = answerSample(tokenizer, [user(chinese), assistant(chinese)])
    const whole = tokenizer.applyChatTemplate([user(chinese), assistant(chinese)])
    expect([...ids]).toEqual([...whole.subarray(0, ids.length)])
  })

  it.each(['stageB-mixed-30-70.tsv', 'whoami-mixed-safe.tsv', 'whoami-1000-natural.tsv'])(
    'reads every line of %s',
    async (name) => {
      const data = await TrainingData.fromTsv(sharedPath('whoami', name), { tokenizer })
      const batches = await collect(data, { maxTokens: 512, batchSize: 4, pack: true, vocabSize: 151_936 })
      expect(batches.reduce((sum, { samples }) => sum + samples, 0)).toBe(data.sampleCount)
    },
  )
})
