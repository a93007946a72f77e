import { type SampleEvent, type StepEvent, Tokenizer, Trainer, TrainingData } from 'qwen3-nvfp4'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { makeByteTokenizer } from '../../examples/support/make-byte-tokenizer'
import { temporaryFolder } from '../support/files'
import { tinyConfig, tinyModel } from '../support/tiny-model'

const made = makeByteTokenizer('user\nassistant\n'.repeat(20), 300)
const tokenizer = Tokenizer.fromJson(made.tokenizerJson, made.tokenizerConfig)
const config = { ...tinyConfig, vocabSize: made.vocabSize }

describe('probes', () => {
  test('are answered every sampleEvery steps and at the end, and judged by group', async () => {
    const folder = temporaryFolder()
    const tsv = join(folder, 'pairs.tsv')
    writeFileSync(tsv, 'hi\tyes\nwho\tme\n')
    const data = await TrainingData.fromTsv(tsv, { tokenizer })
    await using model = await tinyModel({}, config)
    await using trainer = new Trainer({
      ...{ model, data, tokenizer, maxTokens: 64, batchSize: 2, steps: 50, lr: 1e-2, sampleEvery: 40, sampleTokens: 8 },
      probes: [
        { prompt: 'hi', expect: 'yes', group: 'A' },
        { prompt: [{ role: 'user', content: 'who' }], expect: /^me$/, forbid: 'yes', group: 'A' },
        { prompt: 'hi', forbid: 'yes', group: 'B' },
        { prompt: 'you' },
      ],
    })
    const samples: SampleEvent[] = []
    trainer.on('sample', (event) => samples.push(event))
    await trainer.run()
    expect(samples.map(({ step }) => step)).toEqual([40, 50])
    expect(samples[1]!.shares).toEqual({ A: 1, B: 0 })
    expect(samples[1]!.answers.map(({ text, holds }) => [text, holds])).toMatchObject([
      ['yes', true],
      ['me', true],
      ['yes', false],
      [expect.any(String), undefined],
    ])
  })

  test('do not change what is learned', async () => {
    const losses = async (probes: { prompt: string }[]) => {
      const ids = tokenizer.encode('hi user, hi assistant')
      const data = await TrainingData.fromSamples([{ ids, labels: ids }])
      await using model = await tinyModel({}, config)
      await using trainer = new Trainer({ model, data, tokenizer, maxTokens: 64, steps: 4, sampleEvery: 1, probes })
      const taken: number[] = []
      trainer.on('step', ({ loss }: StepEvent) => taken.push(loss))
      await trainer.run()
      return taken
    }
    expect(await losses([{ prompt: 'hi' }])).toEqual(await losses([]))
  })

  test.each([
    [[{ prompt: '' }], 'Expected a non-empty string for probes[0].prompt'],
    [[{ prompt: 'hi', expects: 'a' }], 'did you mean expect?'],
    [[{ prompt: 'hi', expect: 3 }], 'Expected a text or a RegExp for probes[0].expect but received 3'],
    [{}, 'Expected an array of probes for probes but received an object'],
  ])('refuse %j', async (probes, message) => {
    await using model = await tinyModel({}, config)
    const data = await TrainingData.fromSamples([{ ids: [1, 2], labels: [1, 2] }])
    expect(() => new Trainer({ model, data, tokenizer, maxTokens: 8, probes: probes as [] })).toThrow(message)
  })
})
