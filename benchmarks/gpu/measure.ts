/** How the sections measure: every one takes a bench and pushes rows. */
import type { Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import type { Machine, Workload } from './workloads'

export interface Row {
  what: string
  /** In `unit`; of times less is better, of rates more. */
  ours: number
  unit: 'tok/s' | 'ms'
  limit: number
  /** Ids of what benchmarks/peers/hf.py prints for the same, with a name each. */
  peers: Record<string, string>
  note: string
}

export interface Bench {
  workload: Workload
  machine: Machine
  device: string
  quick: boolean
  steps: number
  lr: number
  model: Qwen3Nvfp4Model
  add(row: Row): void
  /** Lines below the table. */
  say(line: string): void
  /** One measurement; a failure is reported and the next one goes on. */
  attempt(what: string, work: () => Promise<void>): Promise<void>
}

export const now = (): number => performance.now() / 1000

export async function secondsOf(work: () => Promise<unknown>): Promise<number> {
  const start = now()
  await work()
  return now() - start
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]!
}

export const median = (values: readonly number[]): number => quantile(values, 0.5)

/** Distinct ids that are the same in every run. */
export function tokenIds(count: number, vocabSize: number, seed = 1): Int32Array {
  return Int32Array.from({ length: count }, (_, i) => ((i + 1) * 7919 * (seed + 1)) % vocabSize)
}

export const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`

/** The library's own accounting, and what the whole GPU has in use (cudaMemGetInfo: other processes and contexts too). */
export async function memoryNote(model: Qwen3Nvfp4Model): Promise<string> {
  const use: { peak: number; gpuFree?: number; gpuTotal?: number } = await model.memory()
  const gpu = use.gpuTotal === undefined ? '' : `, GPU in use ${gib(use.gpuTotal - use.gpuFree!)}`
  return `peak ${gib(use.peak)}${gpu}`
}
