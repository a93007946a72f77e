/** Where the turns of a `chat` come from: flags, a file, the terminal, or lines of stdin. */
import { readFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { readTranscript } from 'qwen3-nvfp4'
import { usage } from './exit'

export interface TurnFlags {
  prompt?: string[]
  promptsFrom?: string
  followupPrompt?: string
  turns?: number
  interactive?: boolean
}

/** The turns that flags give, in order; empty when none does. */
export async function scriptedTurns(flags: TurnFlags): Promise<string[]> {
  const { prompt = [], promptsFrom, followupPrompt, turns } = flags
  const all = [...prompt, ...(promptsFrom === undefined ? [] : await readPrompts(promptsFrom))]
  if (turns === undefined) return followupPrompt === undefined ? all : [...all, followupPrompt]
  if (all.length === 0) throw usage('Expected --prompt or --prompts-from with --turns')
  const next = followupPrompt ?? all.at(-1)!
  return Array.from({ length: turns }, (_, i) => all[i] ?? next)
}

/** The user's messages of a transcript, or every line of another file. */
async function readPrompts(path: string): Promise<string[]> {
  if (/\.jsonl?$/.test(path)) {
    return (await readTranscript(path)).filter(({ role }) => role === 'user').map(({ content }) => content)
  }
  return (await readFile(path, 'utf8')).split('\n').filter((line) => line.trim() !== '')
}

/** Lines as they are entered, until the end of stdin or Ctrl-C at the prompt; `interrupt` is Ctrl-C during a turn. */
export async function* enteredTurns(signal: AbortSignal, interrupt: () => void): AsyncGenerator<string> {
  const terminal = process.stdin.isTTY === true
  const { stdin: input, stderr } = process
  const lines = createInterface({ input, signal, terminal, ...(terminal && { output: stderr, prompt: '> ' }) })
  let answering = false
  lines.on('SIGINT', () => (answering ? interrupt() : lines.close()))
  if (terminal) lines.prompt()
  for await (const line of lines) {
    if (line.trim() !== '') {
      answering = true
      yield line
      answering = false
    }
    if (terminal) lines.prompt()
  }
}
