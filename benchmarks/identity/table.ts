/** What the arms printed, as tables. */
import type { Answered } from './asking'
import type { Group } from './phrasings'
import { arms } from './settings'

export interface TrainedLine {
  arm: string
  stage: 'scratch' | 'tuning'
  reason: string
  steps: number
  loss: number
  seconds: number
  parameters: number
  bitsPerParameter: number
}

export interface AskedLine {
  arm: string
  /** Before and after tuning; 'folded' is after, with the residual folded into plain NVFP4. */
  when: 'before' | 'after' | 'folded'
  answers: Answered[]
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

export function tables(lines: readonly Line[]): string {
  const asked = lines.filter(isAsked)
  const trained = lines.filter((line): line is TrainedLine => !isAsked(line))
  const name = ({ arm, when }: AskedLine) => `${arms[arm]!.title}, ${titles[when]}`
  const percent = (share: number) => `${(100 * share).toFixed(0)} %`
  return [
    table(
      ['', 'A has the identity', 'B leaks it', 'C leaks it', 'lines of the mixed sets answered'],
      asked.map((line) => [
        name(line),
        ...(['A', 'B', 'C'] as const).map((g) => cell(line.answers, g)),
        percent(line.lines),
      ]),
    ),
    table(
      [
        '',
        'A, new sentence',
        'A, new wording',
        'B, new sentence',
        'B, new wording',
        'B, new topic',
        'C, new sentence',
        'C, new wording',
      ],
      asked.map(({ answers, ...line }) => [
        name({ answers, ...line }),
        cell(answers, 'A', 'sentence'),
        cell(answers, 'A', 'wording'),
        cell(answers, 'B', 'sentence'),
        cell(answers, 'B', 'wording'),
        cell(answers, 'B', 'topic'),
        cell(answers, 'C', 'sentence'),
        cell(answers, 'C', 'wording'),
      ]),
    ),
    table(
      ['', ...(asked[0]?.probes ?? []).map(([prompt]) => prompt)],
      asked.map((line) => [name(line), ...line.probes.map(([, answer]) => answer)]),
    ),
    table(
      ['', 'stage', 'steps', 'ended by', 'loss', 's', 'ms a step', 'parameters', 'bits a parameter'],
      trained.map(({ arm, stage, steps, reason, loss, seconds, parameters, bitsPerParameter }) => [
        ...[arms[arm]!.title, stage, steps, reason, loss.toFixed(3), seconds.toFixed(1)],
        ...[((1000 * seconds) / steps).toFixed(1), parameters, bitsPerParameter.toFixed(2)],
      ]),
    ),
  ].join('\n\n')
}

/** The questions whose probes do not hold after tuning, with their answers. */
export const failures = (lines: readonly Line[]): string =>
  lines
    .filter(isAsked)
    .filter(({ when }) => when !== 'before')
    .flatMap(({ arm, when, answers }) =>
      answers
        .filter(({ holds }) => !holds)
        .map(({ group, kind, prompt, text }) => `${arm} ${when} ${group} ${kind}: ${prompt} → ${text}`),
    )
    .join('\n')
