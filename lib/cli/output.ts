/** Results go to stdout, everything else to stderr; what only helps a person to wait is shown in a terminal alone. */
import { SingleBar } from 'cli-progress'

const isTerminal = (): boolean => process.stderr.isTTY === true

/** A piece of the result. */
export function write(text: string): void {
  process.stdout.write(text)
}

export const line = (text: string): void => write(`${text}\n`)

/** A result for programs: one JSON value a line. */
export const json = (value: unknown): void => line(JSON.stringify(value))

/** For a person who looks on. */
export function note(text: string): void {
  if (isTerminal()) process.stderr.write(`${text}\n`)
}

/** For whoever keeps the log. */
export function warn(text: string): void {
  process.stderr.write(`${text}\n`)
}

/** A bar for the bytes of a file, in a terminal. */
export class ByteBar {
  readonly #bar: SingleBar | undefined

  constructor(label: string) {
    if (!isTerminal()) return
    const format = `${label} {bar} {value}/{total} MiB`
    this.#bar = new SingleBar({ format, clearOnComplete: true, hideCursor: true, stream: process.stderr })
  }

  readonly update = ({ doneBytes, totalBytes }: { doneBytes: number; totalBytes: number }): void => {
    const mib = (bytes: number) => Math.round(bytes / 2 ** 20)
    if (this.#bar?.isActive) this.#bar.update(mib(doneBytes))
    else this.#bar?.start(mib(totalBytes), mib(doneBytes))
  }

  stop(): void {
    this.#bar?.stop()
  }
}

/** Bytes for a person: MiB below one GiB. */
export const size = (bytes: number): string => (bytes < 2 ** 30 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : gib(bytes))

export const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`

export const seconds = (ms: number): number => Math.round(ms) / 1000

/** Rows under a header, columns aligned: the first to the left, the others to the right. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)))
  const pad = (cell: string, i: number) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))
  return rows.map((row) => row.map(pad).join('  ').trimEnd()).join('\n')
}
