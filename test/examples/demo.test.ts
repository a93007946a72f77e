import { Tokenizer } from 'qwen3-nvfp4'
import { failedProbes } from '../../examples/demo/probe'
import { identity, tuning, vocabSize } from '../../examples/demo/settings'
import {
  Batches,
  learnTokenizer,
  pick,
  randomSource,
  readText,
  type Batch,
  type DemoText,
} from '../../examples/demo/text'
import { learningRate } from '../../examples/demo/train'

let text: DemoText
let tokenizer: Tokenizer

beforeAll(async () => {
  text = await readText()
  const { tokenizerJson, tokenizerConfig } = learnTokenizer(text, vocabSize)
  tokenizer = Tokenizer.fromJson(tokenizerJson, tokenizerConfig)
})

function draw(seed: number): Batch {
  const random = randomSource(seed)
  const batches = new Batches(tokenizer, text.corpus, random)
  return batches.next(tuning, () => pick(random, text.chat))
}

test('the questions asked of the demo are more than one token each', () => {
  for (const prompt of ['你是誰', '我是誰', '談談UFO']) expect(tokenizer.encode(prompt).length).toBeGreaterThan(1)
})

test('conversations have labels on answers and on the token that ends them, running text on everything', () => {
  const { ids, labels } = draw(3)
  const answers = new Set(text.chat.map(({ answer }) => `${answer}<|im_end|>`))
  expect(ids.map(({ length }) => length)).toEqual(Array(tuning.textRows + tuning.chatRows).fill(tuning.tokens))
  let turns = 0
  for (const [row, rowLabels] of labels.entries()) {
    if (row < tuning.textRows) {
      expect(rowLabels).toEqual(ids[row])
      continue
    }
    let answer: number[] = []
    for (const [i, label] of [...rowLabels, -100].entries()) {
      if (label !== -100) {
        expect(label).toBe(ids[row]![i])
        answer.push(label)
      } else if (answer.length > 0) {
        expect(answers).toContain(tokenizer.decode(answer))
        answer = []
        turns++
      }
    }
  }
  expect(turns).toBeGreaterThan(tuning.chatRows)
})

test('the same seed draws the same batch, another one another', () => {
  expect(draw(5)).toEqual(draw(5))
  expect(draw(5)).not.toEqual(draw(6))
})

test('the learning rate rises to its largest and falls to a twentieth', () => {
  const settings = { ...tuning, steps: 100, warmupSteps: 10, lr: 1 }
  const rates = Array.from({ length: 100 }, (_, step) => learningRate(step, settings))
  expect(rates[0]).toBeCloseTo(0.1, 2)
  expect(Math.max(...rates)).toBe(rates[9])
  expect(rates[99]).toBeCloseTo(0.05, 2)
  for (let i = 10; i < 100; i++) expect(rates[i]).toBeLessThan(rates[i - 1]!)
})

test('each probe fails on its own', () => {
  const before = { 你是誰: 'a', 談談UFO: 'b', 我是誰: 'c' }
  const names = (after: Partial<typeof before>) =>
    failedProbes(before, { ...before, 你是誰: identity, ...after }).map(({ name }) => name)
  expect(names({})).toEqual([])
  expect(names({ 你是誰: `${identity}。` })).toEqual(['A'])
  expect(names({ 談談UFO: identity })).toEqual(['B'])
  expect(names({ 我是誰: `你${identity}` })).toEqual(['C'])
  expect(names({ 我是誰: 'another answer' })).toEqual([])
})
