/** How the command ends: its exit codes, and what signals do. docs/cli.md lists them. */
import { constants } from 'node:os'

export const exitCodes = {
  ok: 0,
  failure: 1,
  usage: 2,
  /** Of guard, as timeout(1): the limit was passed. */
  limit: 124,
  /** Of guard, as a shell: the program is there and cannot be run, or is not there. */
  cannotRun: 126,
  notFound: 127,
} as const

/** As a shell: 130 for SIGINT, 143 for SIGTERM. */
export const codeOfSignal = (signal: NodeJS.Signals): number => 128 + constants.signals[signal]

/** Ends the command with this code; its message, if any, has not been printed. */
export class Exit extends Error {
  constructor(
    readonly code: number,
    message = '',
  ) {
    super(message)
  }
}

/** An option that cannot be right beside the others, or is missing. */
export const usage = (message: string): Exit => new Exit(exitCodes.usage, message)

const stopSignals: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM']

/**
 * Gives `work` a signal that the first SIGINT or SIGTERM aborts, so that it ends in order; the second one ends the
 * process at once. Work that was stopped ends with the signal's code, even if it came to its end by itself.
 */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController()
  const listener = (name: NodeJS.Signals) => {
    const code = codeOfSignal(name)
    if (controller.signal.aborted) process.exit(code)
    controller.abort(new Exit(code))
  }
  for (const name of stopSignals) process.on(name, listener)
  try {
    const result = await work(controller.signal)
    controller.signal.throwIfAborted()
    return result
  } catch (error) {
    throw controller.signal.aborted ? controller.signal.reason : error
  } finally {
    for (const name of stopSignals) process.off(name, listener)
  }
}
