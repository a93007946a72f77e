/** The payloads of a planned tensor, and what became of its values. */
import type { ConvertedTensor } from '../../types/convert'
import type { ParameterPart } from '../../types/checkpoint'
import type { NativeConvertErrors } from '../../types/native'
import type { PlannedPart, PlannedTensor } from './plan'
import { isMain, sourceBytes, sourceOf, type ConversionRun, type MadeRange, type RangeQueue } from './range-queue'

export class TensorConversion {
  readonly #run: ConversionRun
  readonly #ranges: RangeQueue
  readonly #tensor: PlannedTensor
  readonly #globalScale: number
  readonly #scales: Partial<Record<ParameterPart, Uint8Array>> = {}
  readonly #errors: NativeConvertErrors = { squaredError: 0, squares: 0, largestError: 0, subnormalScales: 0 }

  /** `globalScale` of the NVFP4 that is made or kept; `ranges` is at the first range of this tensor. */
  constructor(run: ConversionRun, ranges: RangeQueue, tensor: PlannedTensor, globalScale: number) {
    this.#run = run
    this.#ranges = ranges
    this.#tensor = tensor
    this.#globalScale = globalScale
  }

  /** The payload of a part, all of it in turn; a chunk holds until the next. Scales come after their codes. */
  read({ part }: PlannedPart): AsyncIterable<Uint8Array> | Iterable<Uint8Array> {
    if (part === 'globalScale') return [this.#globalScaleBytes()]
    return isMain(part) ? this.#convert() : [this.#scales[part]!]
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

  async *#convert(): AsyncGenerator<Uint8Array> {
    const { name, rows, cols } = this.#tensor
    const count = rows * cols
    for (let done = 0; done < count;) {
      const made = await this.#ranges.next()
      this.#collect(made)
      this.#run.onRead(name, (sourceBytes(sourceOf(this.#tensor, made.part)) * (made.end - made.begin)) / count)
      yield made.payload
      done = made.end
    }
  }

  #collect({ part, begin, errors: made, scales }: MadeRange): void {
    if (scales.length > 0) {
      const { rows, cols } = this.#tensor
      const name = part === 'codes' ? 'scales' : 'residualScales'
      const whole = (this.#scales[name] ??= new Uint8Array((rows * cols) / 16))
      whole.set(scales, begin / 16)
    }
    if (part === 'residualCodes') return
    const errors = this.#errors
    errors.squaredError += made.squaredError
    errors.squares += made.squares
    errors.largestError = Math.max(errors.largestError, made.largestError)
    errors.subnormalScales += made.subnormalScales
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
