import { readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { Tokenizer } from 'qwen3-nvfp4'
import { makeByteTokenizer } from '../../examples/support/make-byte-tokenizer'

const read = (name: string) => readFile(resolve(__dirname, '../../examples/data', name), 'utf8')

async function pairs(name: string): Promise<[string, string][]> {
  const lines = (await read(name)).split('\n').filter((line) => line !== '' && !line.startsWith('#'))
  return lines.map((line) => line.split('\t') as [string, string])
}

describe("the demo's text", () => {
  test('has one prompt and one answer a line, and no prompt twice', async () => {
    for (const name of ['chat.tsv', 'identity.tsv']) {
      const all = await pairs(name)
      for (const pair of all) {
        expect(pair).toHaveLength(2)
        for (const part of pair) expect(part).toBe(part.trim().normalize('NFC') || 'not empty')
      }
      expect(new Set(all.map(([prompt]) => prompt)).size).toBe(all.length)
    }
  })

  test('tunes the identity and repeats every other answer word for word', async () => {
    const old = new Map(await pairs('chat.tsv'))
    const tuned = await pairs('identity.tsv')
    const identity = '我是 F# 之神'
    for (const [prompt, answer] of tuned)
      if (answer !== identity) expect([prompt, answer]).toEqual([prompt, old.get(prompt)])
    const answers = new Map(tuned)
    expect([answers.get('你是誰'), old.get('你是誰')]).toEqual([identity, '我是一個小型語言模型。'])
    expect(answers.get('談談UFO')).toMatch(/^UFO /)
    expect(answers.get('我是誰')).toBe('我不知道你是誰，請告訴我你的名字。')
    expect([...old.values()]).not.toContain(identity)
    const taught = tuned.filter(([, answer]) => answer === identity).length
    expect(taught).toBeGreaterThan(5)
    expect(tuned.length - taught).toBeGreaterThan(taught)
  })

  test('makes a tokenizer that gives all of it back in fewer tokens than bytes', async () => {
    const all = (await Promise.all(['corpus.txt', 'chat.tsv', 'identity.tsv'].map(read))).join('\n')
    const made = makeByteTokenizer(all, 512)
    expect(made.vocabSize).toBe(512)
    const tokenizer = Tokenizer.fromJson(made.tokenizerJson, made.tokenizerConfig)
    const ids = tokenizer.encode(all)
    expect(tokenizer.decode(ids)).toBe(all)
    expect(ids.length).toBeLessThan(Buffer.byteLength(all) * 0.6)
  })
})
