import type { SampleOrigin } from '../../types/training'

/** Lines and samples that are listed, before a number stands for the rest. */
const mostListed = 100

/** Samples in the words of an error: `pairs.tsv, lines 3, 9, 12; samples[4]`. */
export function describeOrigins(origins: readonly SampleOrigin[]): string {
  const lines = new Map<string, number[]>()
  const others: string[] = []
  for (const { where, file, line } of origins.slice(0, mostListed)) {
    if (file === undefined || line === undefined) others.push(where)
    else lines.set(file, [...(lines.get(file) ?? []), line])
  }
  const files = Array.from(lines, ([file, numbers]) => {
    const sorted = numbers.sort((a, b) => a - b)
    return `${file}, ${sorted.length === 1 ? 'line' : 'lines'} ${sorted.join(', ')}`
  })
  const rest = origins.length > mostListed ? [`and ${origins.length - mostListed} more`] : []
  return [...files, ...others, ...rest].join('; ')
}
