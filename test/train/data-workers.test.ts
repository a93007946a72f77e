/** Tokenising in threads: the same batches and errors as without, and threads that hold up nobody. */
import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { Tokenizer, TrainingData, type BatchOptions } from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny-tokenizer'
import { byteTokenizer, collect, plain, writeData } from '../support/training-data'

function writeTokenizer(folder = temporaryFolder()): string {
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tinyTokenizerJson()))
  writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify(tinyTokenizerConfig()))
  return folder
}

const pairs = Array.from({ length: 90 }, (_, i) => `question ${i}\t${'answer '.repeat(i % 5)}${i}`).join('\n')
const chats = Array.from({ length: 20 }, (_, i) =>
  JSON.stringify({
    messages: [
      { role: 'user', content: `question ${i}` },
      { role: 'assistant', content: `answer ${i}` },
      { role: 'user', content: 'and?' },
      { role: 'assistant', content: 'more '.repeat(400 + i) },
    ],
  }),
).join('\n')
const packed: BatchOptions = { maxTokens: 2400, batchSize: 2, pack: true, epochs: 2, seed: 3 }

let tokenizer: Tokenizer
beforeAll(async () => {
  tokenizer = await Tokenizer.fromFile(writeTokenizer())
})

describe('batches are those of no threads', () => {
  test.each([1, 2])('of pairs and of chats, with %d', async (workers) => {
    for (const [name, contents] of Object.entries({ tsv: pairs, chat: chats })) {
      const file = writeData(name, contents)
      const read = (options: object) =>
        name === 'tsv'
          ? TrainingData.fromTsv(file, { tokenizer, systemPrompt: 'Be kind.', ...options })
          : TrainingData.fromChatJsonl(file, { tokenizer, answers: 'last', ...options })
      const [expected, data] = [await read({}), await read({ workers })]
      const batches = await collect(expected, packed)
      expect(plain(await collect(data, packed))).toEqual(plain(batches))
      expect(data.fingerprint).toBe(expected.fingerprint)
      expect(await data.countBatches(packed)).toBe(batches.length)
      const from = batches[1]!.cursor
      const later = await collect(await read({ workers, cacheBytes: 0 }), { ...packed, from })
      expect(plain(later)).toEqual(plain(batches.slice(2)))
    }
  })

  test('in a mix', async () => {
    const file = writeData('pairs.tsv', pairs)
    const mixed = async (workers: number) => {
      const [a, b] = [
        await TrainingData.fromTsv(file, { tokenizer, workers }),
        await TrainingData.fromTsv(file, { tokenizer }),
      ]
      return collect(TrainingData.mix([{ data: a, weight: 2 }, { data: b, weight: 1 }]), packed) // prettier-ignore
    }
    expect(plain(await mixed(2))).toEqual(plain(await mixed(0)))
  })
})

test('a bad sample fails in its turn, as without threads', async () => {
  const file = writeData('pairs.tsv', `${pairs}\nbad\tan <|im_end|> inside\n${pairs}`)
  const failures = []
  for (const workers of [0, 2]) {
    const data = await TrainingData.fromTsv(file, { tokenizer, workers })
    let taken = 0
    const failing = async () => {
      for await (const { samples } of data.batches({ maxTokens: 200, shuffle: false })) taken += samples
    }
    const { name, message, code, line } = (await failing().catch((error: unknown) => error)) as Error & {
      code: string
      line: number
    }
    failures.push({ name, message, code, line, taken })
  }
  expect(failures[0]).toMatchObject({ code: 'TRAINING_DATA_INVALID', line: 91, taken: 89 })
  expect(failures[1]).toEqual(failures[0])
})

test('a tokenizer that is no file, or another one by now, is refused', async () => {
  const file = writeData('pairs.tsv', pairs)
  await expect(TrainingData.fromTsv(file, { tokenizer: byteTokenizer(), workers: 1 })).rejects.toThrow(
    'Expected a Tokenizer of Tokenizer.fromFile, which workers read again, for tokenizer',
  )
  await expect(TrainingData.fromTsv(file, { tokenizer, workers: -1 })).rejects.toThrow(
    'Expected an integer from 0 to 64',
  )
  const folder = writeTokenizer()
  const data = await TrainingData.fromTsv(file, { tokenizer: await Tokenizer.fromFile(folder), workers: 1 })
  const config = { ...tinyTokenizerConfig(), chat_template: '{{ messages[0].content }}<|im_end|>' }
  writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify(config))
  await expect(collect(data, packed)).rejects.toMatchObject({
    code: 'TRAINING_DATA_CHANGED',
    message: expect.stringContaining('is another tokenizer than it was when it was read'),
  })
})

test.each(['leaves its loop', 'forgets its generator'])('a process that %s ends', (how) => {
  const script = `
    const { Tokenizer, TrainingData } = require(${JSON.stringify(resolve(__dirname, '../../dist/index.cjs'))})
    const main = async () => {
      const tokenizer = await Tokenizer.fromFile(${JSON.stringify(writeTokenizer())})
      const data = await TrainingData.fromTsv(${JSON.stringify(writeData('pairs.tsv', pairs))}, { tokenizer, workers: 2 })
      const batches = data.batches({ maxTokens: 200 })
      console.log((await batches.next()).value.samples)
      if (${how === 'leaves its loop'}) await batches.return()
    }
    main()`
  const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8', timeout: 60_000 })
  expect([status, stdout, stderr]).toEqual([0, '1\n', ''])
})
