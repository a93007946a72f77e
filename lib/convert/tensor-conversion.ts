/** The payloads of planned tensors, made natively a few million elements at a time, the next while one is written. */
import type { ConvertedTensor } from '../../types/convert'
import type { ParameterPart } from '../../types/checkpoint'
import type { DTypeName } from '../../types/format'
import type { NativeConvertErrors, NativeConvertTarget, NativeDevice, NativeTensorSource } from '../../types/native'
import { packGgmlNvfp4, packQ8 } from '../format/gguf-blocks'
import { native } from '../native'
import { runNative } from '../native-call'
import type { PlannedPart, PlannedTensor } from './plan'

/** Elements of a native call: 8 MB of bf16, some milliseconds of work. */
export const rangeElements = 4 << 20

/** Parts that are made in one pass over the source; scales come with their codes. */
type MainPart = 'values' | 'codes' | 'residualCodes'

type Made = NativeConvertErrors & { values?: Uint8Array; codes?: Uint8Array; scales?: Uint8Array }

export interface ConversionRun {
  device: NativeDevice
  files: readonly string[]
  scaleRule: NativeConvertTarget['scaleRule']
  /** Whether the target stores what values are divided by. */
  isReciprocal: boolean
  signal: AbortSignal | undefined
  /** Bytes of the source that were read for a tensor. */
  onRead: (tensor: string, bytes: number) => void
}

/** Bytes that a source is read from. */
export function sourceBytes({ values, codes, scales, residualCodes, residualScales }: NativeTensorSource): number {
  // NVFP4 blocks have codes and scales in the same bytes.
  const ranges = [values, codes, codes?.blocks ? undefined : scales, residualCodes, residualScales]
  return ranges.reduce((sum, range) => sum + (range?.bytes ?? 0), 0)
}

export class TensorConversion {
  readonly #run: ConversionRun
  readonly #tensor: PlannedTensor
  readonly #globalScale: number
  readonly #scales: Partial<Record<ParameterPart, Uint8Array>> = {}
  readonly #errors: NativeConvertErrors = { squaredError: 0, squares: 0, largestError: 0, subnormalScales: 0 }

  /** `globalScale` of the NVFP4 that is made or kept. */
  constructor(run: ConversionRun, tensor: PlannedTensor, globalScale: number) {
    this.#run = run
    this.#tensor = tensor
    this.#globalScale = globalScale
  }

  /** The payload of a part. Scales come after their codes, with which they were made. */
  read({ part, dtype }: PlannedPart): AsyncIterable<Uint8Array> | Iterable<Uint8Array> {
    if (part === 'globalScale') return [this.#globalScaleBytes()]
    if (part === 'scales' || part === 'residualScales') return [this.#scales[part]!]
    return this.#convert(part, dtype)
  }

  report(): ConvertedTensor {
    const { name, from, to, rows, cols } = this.#tensor
    const { squaredError, squares, largestError, subnormalScales } = this.#errors
    return {
      name,
      from,
      to,
      exact: squaredError === 0,
      relativeRmsError: squaredError === 0 ? 0 : Math.sqrt(squaredError / squares),
      largestError,
      subnormalScales: to === 'nvfp4' ? subnormalScales / ((rows * cols) / 16) : 0,
    }
  }

  async *#convert(part: MainPart, dtype: DTypeName): AsyncGenerator<Uint8Array> {
    const { rows, cols } = this.#tensor
    const count = rows * cols
    const bytes = sourceBytes(this.#sourceOf(part))
    let next = this.#start(part, 0)
    for (let begin = 0; begin < count; begin += rangeElements) {
      const result = await next
      const end = Math.min(begin + rangeElements, count)
      if (end < count) next = this.#start(part, end)
      this.#collect(part, result, begin, dtype !== 'nvfp4')
      this.#run.onRead(this.#tensor.name, (bytes * (end - begin)) / count)
      yield this.#pack(dtype, result)
    }
  }

  /** As it is, or in the blocks of a GGUF. */
  #pack(dtype: DTypeName, { values, codes, scales }: Made): Uint8Array {
    if (dtype === 'nvfp4') return packGgmlNvfp4(codes!, scales!)
    if (dtype !== 'q8_0') return (values ?? codes)!
    return packQ8(new Float32Array(values!.buffer, values!.byteOffset, values!.length / 4), this.#errors)
  }

  #start(part: MainPart, begin: number) {
    const { rows, cols, to, copies } = this.#tensor
    const count = rows * cols
    const range = { count, cols, begin, end: Math.min(begin + rangeElements, count) }
    const { scaleRule, device, files, signal } = this.#run
    // Q8_0 is made of fp32 here.
    const storage = to === 'q8_0' ? 'fp32' : to
    const target = { storage, copies, globalScale: this.#globalScale, scaleRule }
    const started = runNative(signal, (cancel) =>
      native().convertRange(device, files, this.#sourceOf(part), range, target, cancel),
    )
    // When the writer fails first, nobody waits for this range any more.
    started.catch(() => {})
    return started
  }

  /** The residual is copied like a tensor of its own; where codes are copied it stays apart. */
  #sourceOf(part: MainPart): NativeTensorSource {
    const { parameter, codes, scales, residualCodes, residualScales, ...rest } = this.#tensor.source
    if (part === 'residualCodes') return { parameter, codes: residualCodes, scales: residualScales, twoLevel: false }
    if (this.#tensor.copies) return { parameter, ...rest, codes, scales }
    return this.#tensor.source
  }

  #collect(part: MainPart, result: Made, begin: number, keepsScales: boolean): void {
    const { rows, cols, to } = this.#tensor
    if (result.scales && keepsScales) {
      const scales = part === 'codes' ? 'scales' : 'residualScales'
      const whole = (this.#scales[scales] ??= new Uint8Array((rows * cols) / 16))
      whole.set(result.scales, begin / 16)
    }
    // Those of Q8_0 are counted where it is made.
    if (part === 'residualCodes' || to === 'q8_0') return
    const errors = this.#errors
    errors.squaredError += result.squaredError
    errors.squares += result.squares
    errors.largestError = Math.max(errors.largestError, result.largestError)
    errors.subnormalScales += result.subnormalScales
  }

  #globalScaleBytes(): Uint8Array {
    const stored = this.#run.isReciprocal ? this.#divisor() : this.#globalScale
    return new Uint8Array(Float32Array.of(stored).buffer)
  }

  /** The number whose reciprocal is read back as the global scale; not every one has such a number. */
  #divisor(): number {
    const scale = this.#globalScale
    const nearest = Math.fround(1 / scale)
    const ulp = 2 ** (Math.floor(Math.log2(nearest)) - 23)
    const found = [nearest, nearest + ulp, nearest - ulp].find((each) => Math.fround(1 / each) === scale)
    if (found === undefined) {
      const error = Math.abs(Math.fround(1 / nearest) - scale) / scale
      const errors = this.#errors
      // Of all values alike: the relative error of the factor is that of the tensor.
      errors.squares ||= 1
      errors.squaredError += error ** 2 * errors.squares
    }
    return found ?? nearest
  }
}

/** Global scales: those that are kept, one level's 1, or a power of two above the largest magnitude of a group. */
export class GlobalScales {
  readonly #run: ConversionRun
  readonly #groups = new Map<string, PlannedTensor[]>()
  readonly #found = new Map<string, number>()

  constructor(run: ConversionRun, tensors: readonly PlannedTensor[]) {
    this.#run = run
    for (const tensor of tensors.filter(needsScan)) {
      this.#groups.set(tensor.group, [...(this.#groups.get(tensor.group) ?? []), tensor])
    }
  }

  async of(tensor: PlannedTensor): Promise<number> {
    if (tensor.globalScale !== undefined || tensor.to !== 'nvfp4') return tensor.globalScale ?? 1
    const known = this.#found.get(tensor.group)
    if (known !== undefined) return known
    let amax = 0
    for (const { name, source, rows, cols } of this.#groups.get(tensor.group)!) {
      const range = { count: rows * cols, cols, begin: 0, end: rows * cols }
      const { device, files, signal } = this.#run
      const found = await runNative(signal, (cancel) => native().amaxOfRange(device, files, source, range, cancel))
      amax = Math.max(amax, found)
      this.#run.onRead(name, sourceBytes(source))
    }
    const scale = native().twoLevelGlobalScale(amax)
    this.#found.set(tensor.group, scale)
    return scale
  }
}

/** Whether its values are read twice: once for their largest magnitude. */
export const needsScan = ({ to, globalScale }: PlannedTensor): boolean => to === 'nvfp4' && globalScale === undefined
