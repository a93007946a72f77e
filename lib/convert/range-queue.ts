/** The native work of a conversion in the order of the plan: a few million elements at a time, two ahead of the writer. */
import type { ParameterPart } from '../../types/checkpoint'
import type { DTypeName } from '../../types/format'
import type { NativeConvertErrors, NativeConvertTarget, NativeDevice, NativeTensorSource } from '../../types/native'
import { native } from '../native'
import { runNative } from '../native-call'
import type { GlobalScales } from './global-scales'
import type { PlannedPart, PlannedTensor } from './plan'

/** Elements of a native call: 8 MB of bf16, some milliseconds of work. */
export const rangeElements = 4 << 20

/** What the writer has and what is being made: memory that is used again is not given by the system page by page. */
const bufferCount = 3

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

/** Parts that are made in one pass over the source; scales come with their codes. */
export type MainPart = 'values' | 'codes' | 'residualCodes'

interface Range {
  tensor: PlannedTensor
  part: MainPart
  dtype: DTypeName
  begin: number
  end: number
}

export interface MadeRange extends Range {
  errors: NativeConvertErrors
  /** Values, blocks or codes. */
  payload: Uint8Array
  /** Those of codes. */
  scales: Uint8Array
}

/** Bytes of an element in a payload, by the type that a file calls it; codes are pairs. */
const elementBytes: Partial<Record<DTypeName, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  uint8: 1 / 2,
  nvfp4: 36 / 64,
  q8_0: 34 / 32,
}

/** Bytes that a source is read from. */
export function sourceBytes({ values, codes, scales, bnb4, ...residual }: NativeTensorSource): number {
  // NVFP4 blocks have codes and scales in the same bytes.
  const nvfp4 = [codes, codes?.blocks ? undefined : scales, residual.residualCodes, residual.residualScales]
  const ranges = [values, ...nvfp4, bnb4?.codes, bnb4?.absmax, bnb4?.nested?.absmax]
  return ranges.reduce((sum, range) => sum + (range?.bytes ?? 0), 0)
}

/** The residual is copied like a tensor of its own; where codes are copied it stays apart. */
export function sourceOf({ source, copies }: PlannedTensor, part: MainPart): NativeTensorSource {
  const { parameter, codes, scales, residualCodes, residualScales, ...rest } = source
  if (part === 'residualCodes') return { parameter, codes: residualCodes, scales: residualScales, twoLevel: false }
  return copies ? { parameter, ...rest, codes, scales } : source
}

export class RangeQueue {
  readonly #run: ConversionRun
  readonly #globalScales: GlobalScales
  readonly #ranges: Iterator<Range>
  readonly #bufferBytes: number
  readonly #free: ArrayBufferLike[] = []
  readonly #ahead: Promise<MadeRange>[] = []
  #buffers = 0
  #given: ArrayBufferLike | undefined

  constructor(run: ConversionRun, tensors: readonly PlannedTensor[], globalScales: GlobalScales) {
    this.#run = run
    this.#globalScales = globalScales
    this.#ranges = rangesOf(tensors)
    this.#bufferBytes = Math.max(...tensors.map(rangeBytes))
  }

  /** The next range of the plan. The bytes of the one before it are overwritten from now on. */
  async next(): Promise<MadeRange> {
    if (this.#given) this.#free.push(this.#given)
    this.#given = undefined
    for (let buffer = this.#buffer(); buffer; buffer = this.#buffer()) {
      const { done, value } = this.#ranges.next() as IteratorResult<Range, undefined>
      if (done) break
      const made = this.#make(value, buffer)
      // When the writer fails first, nobody waits for this range any more.
      made.catch(() => {})
      this.#ahead.push(made)
    }
    const made = await this.#ahead.shift()!
    this.#given = made.payload.buffer
    return made
  }

  #buffer(): ArrayBufferLike | undefined {
    if (this.#free.length > 0 || this.#buffers === bufferCount) return this.#free.pop()
    this.#buffers++
    return new ArrayBuffer(this.#bufferBytes)
  }

  async #make(range: Range, buffer: ArrayBufferLike): Promise<MadeRange> {
    const { tensor, part, dtype, begin, end } = range
    const { scaleRule, device, files, signal } = this.#run
    const { rows, cols, to, copies } = tensor
    const globalScale = await this.#globalScales.of(tensor)
    const elements = { count: rows * cols, cols, begin, end }
    const storage = to === 'q8_0' ? 'fp32' : to
    const blocks = dtype === 'nvfp4' || dtype === 'q8_0' ? dtype : undefined
    const target = { storage, blocks, copies, globalScale, scaleRule }
    const out = new Uint8Array(buffer)
    const errors = await runNative(signal, (cancel) =>
      native().convertRange(device, files, sourceOf(tensor, part), elements, target, out, cancel),
    )
    const bytes = (end - begin) * elementBytes[dtype]!
    const scales = dtype === 'uint8' ? (end - begin) / 16 : 0
    return { ...range, errors, payload: out.subarray(0, bytes), scales: out.subarray(bytes, bytes + scales) }
  }
}

function* rangesOf(tensors: readonly PlannedTensor[]): Generator<Range, undefined> {
  for (const tensor of tensors) {
    const count = tensor.rows * tensor.cols
    for (const { part, dtype } of tensor.parts) {
      if (!isMain(part)) continue
      for (let begin = 0; begin < count; begin += rangeElements) {
        yield { tensor, part, dtype, begin, end: Math.min(begin + rangeElements, count) }
      }
    }
  }
}

export function isMain(part: ParameterPart): part is MainPart {
  return part === 'values' || part === 'codes' || part === 'residualCodes'
}

/** The most that is made of a tensor at a time. */
function rangeBytes({ rows, cols, parts }: PlannedTensor): number {
  const [{ dtype }] = parts as [PlannedPart, ...PlannedPart[]]
  const withScales = dtype === 'uint8' ? 1 / 16 : 0
  return Math.min(rows * cols, rangeElements) * (elementBytes[dtype]! + withScales)
}
