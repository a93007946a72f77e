import type { MemoryPhase, MemoryReportJson } from '../../types/memory'
import { checkPath, checkString } from '../check'
import { writeFileAtomic } from '../format/atomic-file'
import type { MemoryUse } from '../model/memory'
import { readHostMemory } from './memory-observer'

/** The part of a model that a report reads. */
export interface ReportedModel {
  readonly device: string
  readonly parameterCount: number
  memory(): Promise<MemoryUse>
}

/**
 * What memory holds at the points of a step that you name:
 *
 *     const report = new MemoryReport(model)
 *     await report.record('model_loaded')
 *     // ... 'state_initialized', 'forward_done', 'backward_done', 'optimizer_step_done'
 *     await report.save('memory.json')
 */
export class MemoryReport {
  readonly #model: ReportedModel
  readonly #begun = performance.now()
  readonly #phases: MemoryPhase[] = []

  constructor(model: ReportedModel) {
    this.#model = model
  }

  /** The phases so far. */
  get phases(): readonly MemoryPhase[] {
    return this.#phases
  }

  /** Adds what memory holds once the model's earlier calls are over. */
  async record(phase: MemoryPhase['phase']): Promise<MemoryPhase> {
    checkString('phase', phase)
    const { gpuFree, gpuTotal, model: _, ...arena } = await this.#model.memory()
    const entry: MemoryPhase = {
      phase,
      seconds: (performance.now() - this.#begun) / 1000,
      gpu: gpuFree === undefined || gpuTotal === undefined ? null : { freeBytes: gpuFree, totalBytes: gpuTotal },
      arena,
      processBytes: process.memoryUsage.rss(),
      host: (await readHostMemory()) ?? null,
    }
    this.#phases.push(entry)
    return entry
  }

  toJSON(): MemoryReportJson {
    const { device, parameterCount: parameters } = this.#model
    return { format: 'qwen3-nvfp4-memory', version: 1, device, parameters, phases: [...this.#phases] }
  }

  /** Writes the report as JSON, whole or not at all. */
  async save(path: string | URL): Promise<void> {
    const text = `${JSON.stringify(this, null, 2)}\n`
    await writeFileAtomic(checkPath('path', path), new TextEncoder().encode(text))
  }
}
