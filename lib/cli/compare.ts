/** `compare`: one sequence down the reference, the training and the cached forward pass. */
import { Command } from 'commander'
import { compareForwardPaths, type ForwardPathComparison, type ForwardPathReport } from 'qwen3-nvfp4'
import { Exit, exitCodes, interruptible } from './exit'
import { addModelFlags, type ModelFlags, openModel } from './model-flags'
import { json, line, table } from './output'
import { addPromptFlags, type PromptFlags, readPrompt } from './prompt-flags'
import { flag, integer, number, pick } from './values'

interface Flags extends ModelFlags, PromptFlags {
  topTokens?: number
  tolerance?: number
  chunkTokens?: number
  layers?: boolean
  json?: boolean
}

export function compareCommand(): Command {
  const command = new Command('compare')
    .summary('look where the reference, training and cached forward passes differ')
    .description(
      'run one prompt down the reference (fp32, plain loops), the training and the cached forward pass, and say where they ' +
        'differ; ends with code 1 when a layer passes the tolerance or the likeliest token differs',
    )
  addModelFlags(command, { tokenizer: true })
  addPromptFlags(command)
  return command
    .optionsGroup('Comparison:')
    .addOption(flag('--top-tokens <n>', 'likeliest tokens to list, 1 or more (default: 10)', integer(1)))
    .addOption(
      flag(
        '--tolerance <x>',
        'relative error at which a layer has diverged (default: 1e-4, on a GPU 0.02)',
        number({ above: 0 }),
      ),
    )
    .addOption(flag('--chunk-tokens <n>', 'tokens a call of the cached path, 1 or more (default: 16)', integer(1)))
    .addOption(flag('--layers', 'print every layer'))
    .addOption(flag('--json', 'the whole comparison as one JSON object'))
    .action((flags: Flags) => interruptible((signal) => run(flags, signal)))
}

async function run(flags: Flags, signal: AbortSignal): Promise<void> {
  const { ids, tokenizer } = await readPrompt(flags)
  await using model = await openModel(flags, signal)
  const result = await compareForwardPaths(model, ids, {
    ...pick(flags, ['tolerance', 'chunkTokens']),
    ...(flags.topTokens && { topK: flags.topTokens }),
    ...(tokenizer && { tokenizer }),
    signal,
  })
  if (flags.json) json(result)
  else print(result, flags.layers === true)
  if (result.firstDivergence || !result.sameTopToken) throw new Exit(exitCodes.failure, describe(result))
}

function print({ reference, training, cached, firstDivergence, sameTopToken }: ForwardPathComparison, layers: boolean) {
  const paths = { reference, training, cached }
  line(
    table([
      ['path', 'likeliest', 'logit', 'logits error', 'worst layer', 'NaN', 'infinite'],
      ...Object.entries(paths).map(([name, path]) => [
        name,
        nameOf(path.top[0]!),
        path.top[0]!.logit.toFixed(4),
        path.logits.relativeError.toExponential(2),
        Math.max(...path.layers.map(({ relativeError }) => relativeError)).toExponential(2),
        String(path.nanCount),
        String(path.infinityCount),
      ]),
    ]),
  )
  if (layers) printLayers(training, cached)
  line(
    `\nlikeliest of the reference: ${reference.top.map((token) => `${nameOf(token)} ${token.logit.toFixed(3)}`).join(', ')}`,
  )
  if (!firstDivergence && sameTopToken) line('no layer differs by more than the tolerance')
}

function printLayers(training: ForwardPathReport, cached: ForwardPathReport): void {
  const rows = training.layers.map(({ layer, relativeError, cosine }) => {
    const other = cached.layers[layer]!
    const errors = [relativeError, other.relativeError].map((error) => error.toExponential(2))
    return [String(layer), ...errors, cosine.toFixed(6), other.cosine.toFixed(6)]
  })
  line(`\n${table([['layer', 'training', 'cached', 'cosine', 'cosine'], ...rows])}`)
}

const nameOf = ({ id, text }: { id: number; text?: string }) =>
  text === undefined ? String(id) : `${id} ${JSON.stringify(text)}`

function describe({ firstDivergence, sameTopToken }: ForwardPathComparison): string {
  if (!firstDivergence) return sameTopToken ? '' : 'the paths do not rank the same token first'
  const { path, layer, relativeError } = firstDivergence
  return `the ${path} path diverges at layer ${layer}, by ${relativeError.toExponential(2)}`
}
