/** The flags that give one prompt, as text, as a conversation's first message or as ids. */
import { readFile } from 'node:fs/promises'
import type { Command } from 'commander'
import type { ChatMessage, Tokenizer } from 'qwen3-nvfp4'
import { usage } from './exit'
import { type ModelFlags, openTokenizer } from './model-flags'
import { flag, integer, list, text } from './values'

export interface PromptFlags {
  prompt?: string
  promptFile?: string
  ids?: number[]
  chat?: boolean
  system?: string
  /** undefined without --thinking and --no-thinking: as the template has it. */
  thinking?: boolean
}

export function addPromptFlags(command: Command): Command {
  return command
    .optionsGroup('Prompt:')
    .addOption(flag('--prompt <text>', 'the text to go on with; special tokens in it are recognised', text))
    .addOption(flag('--prompt-file <path>', "the same from a file, '-' for stdin", text))
    .addOption(flag('--ids <list>', 'token ids between commas; no tokenizer is needed then', list(integer(0))))
    .addOption(flag('--chat', "render the prompt as a user's message by the chat template (default: as it is)"))
    .addOption(flag('--system <text>', 'system message in front, with --chat (default: none)', text))
    .addOption(flag('--thinking', 'with --chat, let a thinking model think first (default: as its template has it)'))
    .addOption(flag('--no-thinking', 'with --chat, tell it not to').default(undefined))
}

export interface Prompt {
  ids: Int32Array
  /** Absent with --ids and no --tokenizer. */
  tokenizer?: Tokenizer
}

export async function readPrompt(flags: PromptFlags & ModelFlags): Promise<Prompt> {
  const { ids, chat, system, thinking } = flags
  const given = [flags.prompt, flags.promptFile, ids].filter((value) => value !== undefined)
  if (given.length !== 1) {
    throw usage(`Expected one of --prompt, --prompt-file and --ids but received ${given.length || 'none'}`)
  }
  if (!chat && (system !== undefined || thinking !== undefined)) {
    throw usage('Expected --chat with --system, --thinking and --no-thinking')
  }
  if (ids) {
    if (chat) throw usage('Expected --prompt or --prompt-file with --chat but received --ids')
    const tokenizer = flags.tokenizer === undefined ? undefined : await openTokenizer(flags)
    return { ids: Int32Array.from(ids), ...(tokenizer && { tokenizer }) }
  }
  const tokenizer = await openTokenizer(flags)
  const content = flags.prompt ?? (await readText(flags.promptFile!))
  if (!chat) {
    const encoded = tokenizer.encode(content)
    if (encoded.length === 0) throw usage('Expected a prompt of at least one token but received an empty text')
    return { ids: encoded, tokenizer }
  }
  const messages: ChatMessage[] = [{ role: 'user', content }]
  if (system !== undefined) messages.unshift({ role: 'system', content: system })
  const enableThinking = thinking
  return { ids: tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true, enableThinking }), tokenizer }
}

/** The whole of a file; '-' is stdin. */
export async function readText(path: string): Promise<string> {
  if (path !== '-') return readFile(path, 'utf8')
  const chunks: Buffer[] = []
  for await (const chunk of process.stdin) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks).toString('utf8')
}
