/** What the runs printed, as tables. */
import { arms, reference, type Run } from './runs'

/** One line of results.jsonl. Losses are means over 100 steps, in nats a byte. */
export interface Line extends Pick<Run, 'id' | 'arm' | 'program' | 'task' | 'lr' | 'seed'> {
  at: number
  step: number
  loss: number
  heldOut: number
  /** Of the held-out text before the first step, and of the first batch: on the last line. */
  before?: number
  first?: number
  updateRms?: number
  changedCodes?: number
  msPerStep: number
  final?: boolean
  error?: string
}

const mean = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0) / numbers.length
const percent = (value: number): string => `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(1)} %`
const row = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`

/** Mean over the seeds, and the mean of its difference to the reference of the same rate and seed, with half the range. */
function cell(runs: readonly Line[], references: readonly Line[], of: 'loss' | 'heldOut'): string {
  if (runs.length === 0) return '–'
  const value = mean(runs.map((run) => Number(run[of])))
  const ratios = runs.flatMap((run) => {
    const to = references.find(({ lr, seed }) => lr === run.lr && seed === run.seed)
    return to ? [100 * (run[of] / to[of] - 1)] : []
  })
  if (ratios.length === 0) return value.toFixed(4)
  const spread = (Math.max(...ratios) - Math.min(...ratios)) / 2
  const seeds = ratios.length > 1 ? ` ± ${spread.toFixed(1)} (${ratios.length} seeds)` : ''
  return `${value.toFixed(4)}, ${percent(mean(ratios))}${seeds}`
}

function table(lines: readonly Line[], task: Run['task']): string {
  const ended = lines.filter((line) => line.task === task && line.final)
  const lrs = [...new Set(ended.map(({ lr }) => lr))].sort((a, b) => b - a)
  const of = (arm: string) => ended.filter((line) => line.arm === arm)
  const heads = [
    'arm',
    ...lrs.flatMap((lr) => [`loss, lr ${lr}`, `held out, lr ${lr}`]),
    'update RMS',
    'codes changed',
    'ms',
  ]
  const rows = Object.entries(arms).flatMap(([name, { title }]) => {
    const runs = of(name)
    if (runs.length === 0) return []
    const cells = lrs.flatMap((lr) => {
      const at = runs.filter((run) => run.lr === lr)
      return [cell(at, of(reference), 'loss'), cell(at, of(reference), 'heldOut')]
    })
    const average = (key: 'updateRms' | 'changedCodes' | 'msPerStep', digits: number) => {
      const known = runs.flatMap((run) => run[key] ?? [])
      return known.length > 0 ? mean(known).toFixed(digits) : '–'
    }
    return [row([title, ...cells, average('updateRms', 2), average('changedCodes', 4), average('msPerStep', 1)])]
  })
  return [row(heads), row(heads.map(() => '---')), ...rows].join('\n')
}

/** The same weights on the same batch: what the two programs compute before anything was trained. */
function firstLosses(lines: readonly Line[]): string {
  const first = (arm: string) => lines.find((line) => line.arm === arm && line.task === 'scratch' && line.first)?.first
  const [theirs, ours] = [first('peer'), first('dense')]
  if (!theirs || !ours) return ''
  return `First loss of the same fp32 weights: PyTorch ${theirs.toFixed(5)}, ours ${ours.toFixed(5)}.\n`
}

export function tables(lines: readonly Line[]): string {
  const failed = lines.filter(({ error }) => error).map(({ id, error }) => `- ${id}: ${error}`)
  const parts = [firstLosses(lines)]
  for (const task of ['scratch', 'tuning'] as const) {
    if (lines.some((line) => line.task === task && line.final)) parts.push(`\n${task}\n\n${table(lines, task)}\n`)
  }
  return [...parts, ...failed].join('\n')
}
