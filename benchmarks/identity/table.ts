/** What the arms printed, as tables. */
import type { Answered } from './asking'
import type { Group } from './questions'
import { arms } from './settings'

export interface TrainedLine {
  arm: string
  stage: 'scratch' | 'tuning'
  reason: string
  steps: number
  loss: number
  seconds: number
  /** In the order in which they were taken. */
  validationLosses: number[]
  parameters: number
  bitsPerParameter: number
}

/** Questions that choose between settings, and those that nothing was chosen by. */
export type QuestionSet = 'validation' | 'heldOut'

export interface AskedLine extends Record<QuestionSet, Answered[]> {
  arm: string
  /** Before and after tuning; 'folded' is after, with the residual folded into plain NVFP4. */
  when: 'before' | 'after' | 'folded'
  /** The share of lines of the mixed sets that are answered word for word. */
  lines: number
  /** 你是誰, 談談UFO and 我是誰, with their answers. */
  probes: [string, string][]
  seconds: number
}

export type Line = TrainedLine | AskedLine

export const isAsked = (line: Line): line is AskedLine => 'when' in line

const row = (cells: readonly (string | number)[]): string => `| ${cells.join(' | ')} |`
const table = (heads: readonly string[], rows: readonly (readonly (string | number)[])[]): string =>
  [row(heads), row(heads.map(() => '---')), ...rows.map(row)].join('\n')

const titles: Record<AskedLine['when'], string> = {
  before: 'before tuning',
  after: 'tuned',
  folded: 'tuned, residual folded',
}

/** A: how many have the identity; B and C: how many leak it. Then how many are answered word for word as taught. */
function cell(answers: readonly Answered[], group: Group, kind?: Answered['kind']): string {
  const own = answers.filter((answer) => answer.group === group && (kind === undefined || answer.kind === kind))
  const counted = own.filter(({ holds }) => holds === (group === 'A')).length
  const same = own.filter(({ asTaught }) => asTaught).length
  return `${counted} of ${own.length} (${same})`
}

const setTitles: Record<QuestionSet, string> = { heldOut: 'held out', validation: 'validation' }
const setNames: readonly QuestionSet[] = ['heldOut', 'validation']
const parts = [
  ...(['sentence', 'wording'] as const).map((kind) => ['A', kind] as const),
  ...(['sentence', 'wording', 'topic'] as const).map((kind) => ['B', kind] as const),
  ...(['sentence', 'wording'] as const).map((kind) => ['C', kind] as const),
]

export function tables(lines: readonly Line[]): string {
  const asked = lines.filter(isAsked)
  const trained = lines.filter((line): line is TrainedLine => !isAsked(line))
  const name = ({ arm, when }: AskedLine) => `${arms[arm]!.title}, ${titles[when]}`
  const percent = (share: number) => `${(100 * share).toFixed(0)} %`
  const sets = setNames.flatMap((set) => asked.filter((line) => line[set].length > 0).map((line) => ({ set, line })))
  return [
    table(
      ['', 'questions', 'A has the identity', 'B leaks it', 'C leaks it', 'lines of the mixed sets answered'],
      sets.map(({ set, line }) => [
        name(line),
        setTitles[set],
        ...(['A', 'B', 'C'] as const).map((group) => cell(line[set], group)),
        percent(line.lines),
      ]),
    ),
    table(
      ['', 'questions', ...parts.map(([group, kind]) => `${group}, new ${kind}`)],
      sets.map(({ set, line }) => [
        name(line),
        setTitles[set],
        ...parts.map(([group, kind]) => cell(line[set], group, kind)),
      ]),
    ),
    table(
      ['', ...(asked[0]?.probes ?? []).map(([prompt]) => prompt)],
      asked.map((line) => [name(line), ...line.probes.map(([, answer]) => answer)]),
    ),
    table(
      [
        '',
        'stage',
        'steps',
        'ended by',
        'loss',
        's',
        'ms a step',
        'parameters',
        'bits a parameter',
        'validation losses',
      ],
      trained.map(({ arm, stage, steps, reason, loss, seconds, parameters, bitsPerParameter, validationLosses }) => [
        ...[arms[arm]!.title, stage, steps, reason, loss.toFixed(3), seconds.toFixed(1)],
        ...[((1000 * seconds) / steps).toFixed(1), parameters, bitsPerParameter.toFixed(2)],
        validationLosses.map((one) => one.toFixed(3)).join(' '),
      ]),
    ),
  ].join('\n\n')
}

/** The questions whose probes do not hold after tuning, with their answers. */
export const failures = (lines: readonly Line[]): string =>
  lines
    .filter(isAsked)
    .filter(({ when }) => when !== 'before')
    .flatMap(({ arm, when, ...line }) =>
      setNames.flatMap((set) =>
        line[set]
          .filter(({ holds }) => !holds)
          .map(
            ({ group, kind, prompt, text }) =>
              `${arm} ${when}, ${setTitles[set]}, ${group} ${kind}: ${prompt} → ${text}`,
          ),
      ),
    )
    .join('\n')
