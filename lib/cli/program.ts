/** The command line: one file a command, one line here each. */
import { createRequire } from 'node:module'
import { Command } from 'commander'
import { benchCommand } from './bench'
import { chatCommand } from './chat'
import { compareCommand } from './compare'
import { convertCommand } from './convert'
import { generateCommand } from './generate'
import { guardCommand } from './guard'
import { inspectCommand } from './inspect'
import { oneStepCommand } from './one-step'
import { trainCommand } from './train'
import { verifyCommand } from './verify'

const commands: readonly (() => Command)[] = [
  trainCommand,
  oneStepCommand,
  chatCommand,
  generateCommand,
  compareCommand,
  guardCommand,
  benchCommand,
  convertCommand,
  inspectCommand,
  verifyCommand,
]

const { version } = createRequire(import.meta.url)('qwen3-nvfp4/package.json') as { version: string }

export function createProgram(): Command {
  const program = new Command('qwen3-nvfp4')
    .description('Run and train Qwen3 in 4 bits.')
    .version(version)
    .exitOverride()
    .enablePositionalOptions()
    .configureHelp({ helpWidth: 120 })
    .addHelpText(
      'after',
      '\nEvery flag takes its value as --flag value or --flag=value. Exit codes and all flags: docs/cli.md',
    )
  for (const make of commands) program.addCommand(make().copyInheritedSettings(program).allowExcessArguments(false))
  return program
}
