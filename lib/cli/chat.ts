/** `chat`: a conversation, in a terminal or from a script. */
import { Command } from 'commander'
import type { CacheDtype } from 'qwen3-nvfp4'
import { enteredTurns, scriptedTurns, type TurnFlags } from './chat-turns'
import { Conversation, type ConversationFlags } from './conversation'
import { interruptible, usage } from './exit'
import { addModelFlags, type ModelFlags, openModel, openTokenizer } from './model-flags'
import { addSamplingFlags } from './sampling-flags'
import { flag, integer, oneOf, repeated, text } from './values'

interface Flags extends ModelFlags, TurnFlags, ConversationFlags {
  cacheDtype?: CacheDtype
}

export function chatCommand(): Command {
  const command = new Command('chat')
    .summary('talk to a model, in a terminal or from a script')
    .description(
      'talk to a model: turns from flags, from a file, from the terminal or line by line from stdin; answers go to stdout as ' +
        'they are made. In the terminal: /reset, /save <path>, /help, /quit; Ctrl-C ends an answer',
    )
  addModelFlags(command, { tokenizer: true })
  addTurnFlags(command)
  addCacheFlags(command)
  addSamplingFlags(command, { maxTokens: 1024 })
  return command
    .optionsGroup('Output:')
    .addOption(
      flag(
        '--transcript <path>',
        'write the conversation after every turn: .json, .jsonl, or .txt to be read; may be repeated',
        repeated(text),
      ),
    )
    .addOption(flag('--timing', 'tokens kept, read and written, and seconds, of every turn, on stderr'))
    .addOption(flag('--check-logits', 'look at the logits before every answer; NaN or infinity ends with code 1'))
    .addOption(flag('--memory-report <path>', 'write what memory held after every turn, as JSON (default: none)', text))
    .addOption(flag('--json', 'a JSON object a turn in place of text'))
    .action((flags: Flags) => interruptible((signal) => run(flags, signal)))
}

function addTurnFlags(command: Command): Command {
  return command
    .optionsGroup('Conversation:')
    .addOption(flag('--prompt <text>', 'a turn of the user; may be repeated', repeated(text)))
    .addOption(
      flag(
        '--prompts-from <path>',
        "turns from a file: the user's of a transcript (.json, .jsonl), else its lines",
        text,
      ),
    )
    .addOption(flag('--followup-prompt <text>', 'the turn after these (default: none)', text))
    .addOption(
      flag('--turns <n>', 'how many turns to take; the last one is repeated (default: those given)', integer(1)),
    )
    .addOption(flag('--interactive', 'go on from stdin after these turns (default: when there are none)'))
    .addOption(flag('--system <text>', 'system message (default: none)', text))
    .addOption(flag('--thinking', 'let a thinking model think first (default: as its template has it)'))
    .addOption(flag('--no-thinking', 'tell it not to').default(undefined))
    .addOption(flag('--resume <path>', 'go on with a transcript, .json or .jsonl (default: none)', text))
}

function addCacheFlags(command: Command): Command {
  return command
    .optionsGroup('Cache:')
    .addOption(flag('--context-tokens <n>', 'tokens of the whole conversation, 1 or more', integer(1)).default(4096))
    .addOption(
      flag(
        '--cache-dtype <form>',
        'fp32, fp16, bf16 (default: fp32, on a GPU bf16, its only one)',
        oneOf('fp32', 'fp16', 'bf16'),
      ),
    )
    .addOption(
      flag('--cache-file <path>', 'restore the cache from this file if it is there, save it after every turn', text),
    )
    .addOption(flag('--offload-cache', 'with --cache-file, free the cache between turns'))
    .addOption(flag('--empty-cache-each-turn', 'compute the whole conversation again at every turn'))
    .addOption(
      flag(
        '--prefill <how>',
        'compute prompts whole, or token-by-token as answers are',
        oneOf('whole', 'token-by-token'),
      ).default('whole'),
    )
}

async function run(flags: Flags, signal: AbortSignal): Promise<void> {
  if (flags.offloadCache && flags.cacheFile === undefined) throw usage('Expected --cache-file with --offload-cache')
  if (flags.system !== undefined && flags.resume !== undefined) {
    throw usage('Expected one of --system and --resume but received both')
  }
  const turns = await scriptedTurns(flags)
  const tokenizer = await openTokenizer(flags)
  await using model = await openModel(flags, signal)
  const chat = await Conversation.open(model, tokenizer, flags, signal)
  try {
    for (const turn of turns) await chat.turn(turn)
    if (turns.length > 0 && !flags.interactive) return
    for await (const turn of enteredTurns(signal, () => chat.interrupt())) {
      if (turn.startsWith('/')) {
        if (!(await chat.command(turn))) return
      } else await chat.turn(turn)
    }
  } finally {
    await chat.close()
  }
}
