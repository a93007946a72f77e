import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { temporaryFolder } from '../support/files'
import { runCli, startCli, writeTinyModel } from '../support/run-cli'

const folder = temporaryFolder()
const at = (name: string) => join(folder, name)
let base: string[]
beforeAll(async () => {
  base = ['chat', '--model', await writeTinyModel(folder), '--max-tokens', '6']
})

interface Turn {
  turn: number
  prompt: string
  answer: string
  finishReason: string
  cachedTokens: number
  prefilledTokens: number
  cacheTokens: number
  logits?: { nan: number }
}

async function turnsOf(args: string[], input = ''): Promise<Turn[]> {
  const { code, stdout, stderr } = await runCli([...base, ...args, '--json'], input)
  expect([code, stderr]).toEqual([0, ''])
  return stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Turn)
}

const answers = (turns: Turn[]) => turns.map(({ answer }) => answer)

describe('chat', () => {
  it('takes turns from flags, from a file and from lines of stdin, with the same answers', async () => {
    const flags = await turnsOf(['--prompt', 'hello', '--prompt', 'and you?'])
    expect(flags.map(({ turn, prompt }) => [turn, prompt])).toEqual([
      [1, 'hello'],
      [2, 'and you?'],
    ])
    expect(flags[1]!.cachedTokens).toBe(flags[0]!.cacheTokens)
    const text = await runCli([...base, '--prompt', 'hello', '--prompt=and you?'])
    expect(text).toEqual({ code: 0, stdout: `${answers(flags).join('\n')}\n`, stderr: '' })
    expect(answers(await turnsOf([], 'hello\n\nand you?\n'))).toEqual(answers(flags))
    writeFileSync(at('prompts.txt'), 'hello\nand you?\n')
    expect(answers(await turnsOf(['--prompts-from', at('prompts.txt')]))).toEqual(answers(flags))
    expect(answers(await turnsOf(['--prompt', 'hello', '--followup-prompt', 'and you?', '--turns', '2']))).toEqual(
      answers(flags),
    )
    expect(answers(await turnsOf(['--prompt', 'hello', '--interactive'], 'and you?\n'))).toEqual(answers(flags))
  })

  it('answers the same with the cache emptied, offloaded, or filled token by token', async () => {
    const prompts = ['--prompt', 'one', '--prompt', 'two', '--prompt', 'three']
    const kept = await turnsOf(prompts)
    const emptied = await turnsOf([...prompts, '--empty-cache-each-turn'])
    expect(answers(emptied)).toEqual(answers(kept))
    expect(emptied.map(({ cachedTokens }) => cachedTokens)).toEqual([0, 0, 0])
    const offloaded = await turnsOf([...prompts, '--offload-cache', '--cache-file', at('offload.kv')])
    expect(offloaded.map(({ cachedTokens }) => cachedTokens)).toEqual(kept.map(({ cachedTokens }) => cachedTokens))
    expect(answers(offloaded)).toEqual(answers(kept))
    expect(answers(await turnsOf([...prompts, '--prefill', 'token-by-token']))).toEqual(answers(kept))
  })

  it('goes on in another process with a transcript and a saved cache', async () => {
    const whole = await turnsOf(['--system', 'S', '--prompt', 'one', '--prompt', 'two'])
    const files = ['--transcript', at('chat.jsonl'), '--transcript', at('chat.txt'), '--cache-file', at('chat.kv')]
    const [first] = await turnsOf(['--system', 'S', '--prompt', 'one', ...files])
    expect(readFileSync(at('chat.txt'), 'utf8')).toBe(`system:\nS\n\nuser:\none\n\nassistant:\n${first!.answer}\n`)
    const [second] = await turnsOf(['--resume', at('chat.jsonl'), '--cache-file', at('chat.kv'), '--prompt', 'two'])
    expect(second).toMatchObject({ answer: whole[1]!.answer, cachedTokens: first!.cacheTokens })
    const [replayed] = await turnsOf(['--system', 'S', '--prompts-from', at('chat.jsonl')])
    expect(replayed!.answer).toBe(first!.answer)
    // A cache without its ids is not trusted.
    writeFileSync(at('chat.kv.ids.json'), '[1]\n')
    const args = ['--resume', at('chat.jsonl'), '--cache-file', at('chat.kv'), '--prompt', 'two', '--json']
    const { stdout, stderr } = await runCli([...base, ...args])
    expect(JSON.parse(stdout)).toMatchObject({ answer: whole[1]!.answer, cachedTokens: 0 })
    expect(stderr).toMatch(/chat\.kv\.ids\.json is not of .*chat\.kv, which is not used/)
    rmSync(at('chat.kv'))
  })

  it('forgets on /reset, saves on /save, ends on /quit', async () => {
    const turns = await turnsOf([], `one\n/reset\none\n/save ${at('saved.json')}\n/quit\nmore\n`)
    expect(answers(turns)).toEqual([turns[0]!.answer, turns[0]!.answer])
    expect(turns[1]!.cachedTokens).toBe(0)
    expect(JSON.parse(readFileSync(at('saved.json'), 'utf8')).messages).toHaveLength(2)
    const { stderr } = await runCli(base, '/help\n')
    expect(stderr).toMatch('/reset forgets the conversation')
  })

  it('shows timing, logits and memory of every turn', async () => {
    const args = ['--prompt', 'a', '--prompt', 'b', '--timing', '--check-logits', '--memory-report', at('memory.json')]
    const { stderr, stdout } = await runCli([...base, ...args, '--json'])
    expect(
      stderr.match(/^\[\d+ tokens kept, \d+ read, \d+ written; .* tokens\/s; cache \d+ tokens, [\d.]+ MiB; /gm),
    ).toHaveLength(2)
    expect(JSON.parse(stdout.split('\n')[0]!).logits).toMatchObject({ nan: 0, infinite: 0, top: expect.any(Number) })
    const { phases } = JSON.parse(readFileSync(at('memory.json'), 'utf8'))
    expect(phases.map(({ phase }: { phase: string }) => phase)).toEqual(['model_loaded', 'turn_1_done', 'turn_2_done'])
  })

  it('goes on with the next turn when the time of one is over', async () => {
    const long = [
      '--max-tokens',
      '3000',
      '--ignore-eos',
      '--max-repeats',
      '0',
      '--timeout-ms',
      '40',
      '--context-tokens',
      '8000',
    ]
    const turns = await turnsOf(['--prompt', 'a', '--prompt', 'b', ...long])
    expect(turns.map(({ finishReason }) => finishReason)).toEqual(['aborted', 'aborted'])
  })

  it('ends with 130 when it is interrupted while it waits for a line', async () => {
    const cli = startCli([...base, '--timing'], null)
    cli.process.stdin!.write('hello\n')
    await cli.said(/tokens\/s; cache/)
    cli.process.kill('SIGINT')
    expect(await cli.ended).toMatchObject({ code: 130 })
  })
})
