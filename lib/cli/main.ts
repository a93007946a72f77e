#!/usr/bin/env node
/** `npx qwen3-nvfp4`: runs one command and ends with its exit code. */
import { CommanderError } from 'commander'
import { Qwen3Nvfp4Error } from 'qwen3-nvfp4'
import { Exit, exitCodes } from './exit'
import { createProgram } from './program'

// Whoever reads us may have enough, as `head` does.
process.stdout.on('error', (error: NodeJS.ErrnoException) =>
  process.exit(error.code === 'EPIPE' ? exitCodes.ok : exitCodes.failure),
)

process.exitCode = await run(process.argv.slice(2))

async function run(args: string[]): Promise<number> {
  try {
    await createProgram().parseAsync(args, { from: 'user' })
    return exitCodes.ok
  } catch (error) {
    return report(error)
  }
}

/** Says what failed, on stderr; the exit code. */
function report(error: unknown): number {
  // Commander has said it.
  if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage
  if (error instanceof Exit) return say(error.message, error.code)
  if (error instanceof Qwen3Nvfp4Error) return say(`${error.code}: ${error.message}`, exitCodes.failure)
  const { message, stack, code } = error as NodeJS.ErrnoException
  // Misuse that only the library could see, such as an id beyond the model's vocabulary.
  if (message?.startsWith('Expected ')) return say(message, exitCodes.usage)
  return say(code === undefined ? String(stack ?? error) : message, exitCodes.failure)
}

function say(message: string, code: number): number {
  if (message !== '') process.stderr.write(`error: ${message}\n`)
  return code
}
