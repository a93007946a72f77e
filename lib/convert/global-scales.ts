import { native } from '../native'
import { runNative } from '../native-call'
import type { PlannedTensor } from './plan'
import { sourceBytes, type ConversionRun } from './range-queue'

/** Global scales: those that are kept, one level's 1, or a power of two above the largest magnitude of a group. */
export class GlobalScales {
  readonly #run: ConversionRun
  readonly #groups = new Map<string, PlannedTensor[]>()
  readonly #found = new Map<string, Promise<number>>()

  constructor(run: ConversionRun, tensors: readonly PlannedTensor[]) {
    this.#run = run
    for (const tensor of tensors.filter(needsScan)) {
      this.#groups.set(tensor.group, [...(this.#groups.get(tensor.group) ?? []), tensor])
    }
  }

  async of(tensor: PlannedTensor): Promise<number> {
    if (!needsScan(tensor)) return tensor.globalScale ?? 1
    const { group } = tensor
    const found = this.#found.get(group) ?? this.#scan(this.#groups.get(group)!)
    this.#found.set(group, found)
    return found
  }

  async #scan(tensors: readonly PlannedTensor[]): Promise<number> {
    const { device, files, signal, onRead } = this.#run
    let amax = 0
    for (const { name, source, rows, cols } of tensors) {
      const range = { count: rows * cols, cols, begin: 0, end: rows * cols }
      const found = await runNative(signal, (cancel) => native().amaxOfRange(device, files, source, range, cancel))
      amax = Math.max(amax, found)
      onRead(name, sourceBytes(source))
    }
    return native().twoLevelGlobalScale(amax)
  }
}

/** Whether its values are read twice: once for their largest magnitude. */
export const needsScan = ({ to, globalScale }: PlannedTensor): boolean => to === 'nvfp4' && globalScale === undefined
