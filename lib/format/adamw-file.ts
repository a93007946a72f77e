/**
 * The state of TorchSharp's AdamW, as `optim.Optimizer.save_state_dict` and exportsd.py's save_adamw write it:
 *
 *   name (LEB128 length, UTF-8) · LEB128 groups · LEB128 states
 *   per group: f64 lr, initial lr, beta1, beta2, eps, weight decay · bool amsgrad, maximize
 *   per state: i64 step · tensor m · tensor v · bool, then tensor largest v if it is set
 *   tensor: LEB128 type · LEB128 dims · LEB128 each · values
 *
 * States have no names: they are in the order of the module's parameters.
 */
import type { ByteSource, ByteSourceInput } from '../../types/format'
import { checkPath } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { AtomicFile } from './atomic-file'
import { openByteSource, readFully } from './byte-source'
import { findElementType, payloadBytes } from './element-types'
import { type FloatType, toFloat32 } from './floats'
import { decodeVarint, encodeVarint, maxVarintBytes } from './leb128'

export interface AdamwFileGroup {
  lr: number
  initialLr: number
  beta1: number
  beta2: number
  eps: number
  weightDecay: number
  amsgrad: boolean
  maximize: boolean
}

/** Moments of one parameter, without bias correction. */
export interface AdamwFileState {
  step: number
  shape: number[]
  m: Float32Array
  v: Float32Array
  /** With amsgrad. */
  largestV?: Float32Array
}

interface TensorPlace {
  type: FloatType
  shape: number[]
  offset: number
  bytes: number
}

interface StatePlace {
  step: number
  shape: number[]
  m: TensorPlace
  v: TensorPlace
  largestV?: TensorPlace
}

const optimizerName = 'AdamW'
const largestDims = 8

/** Reads such a file: its structure at once, the moments one parameter at a time. */
export class AdamwFileReader implements AsyncDisposable {
  readonly groups: readonly AdamwFileGroup[]
  readonly #source: ByteSource
  readonly #states: readonly StatePlace[]

  private constructor(source: ByteSource, groups: AdamwFileGroup[], states: StatePlace[]) {
    this.#source = source
    this.groups = groups
    this.#states = states
  }

  /** A file that is not whole, or goes on after its end, is refused (OPTIMIZER_FILE_INVALID). */
  static async open(input: ByteSourceInput): Promise<AdamwFileReader> {
    const source = await openByteSource(input)
    try {
      const cursor = new Cursor(source)
      const name = new TextDecoder().decode(await cursor.take(await cursor.varint()))
      if (name !== optimizerName) throw cursor.invalid(`it holds the state of ${JSON.stringify(name)}, not of AdamW`)
      const [groupCount, stateCount] = [await cursor.varint(), await cursor.varint()]
      const groups: AdamwFileGroup[] = []
      while (groups.length < groupCount) groups.push(await cursor.group())
      const states: StatePlace[] = []
      while (states.length < stateCount) states.push(await cursor.state())
      if (cursor.position < source.size) throw cursor.invalid('it goes on after its last state')
      return new AdamwFileReader(source, groups, states)
    } catch (error) {
      await source.close?.()
      throw error
    }
  }

  /** Steps and shapes, in the order of the file. */
  get states(): readonly { step: number; shape: readonly number[] }[] {
    return this.#states
  }

  async read(index: number): Promise<AdamwFileState> {
    const { step, shape, m, v, largestV } = this.#states[index]!
    const values = { step, shape, m: await this.#values(m), v: await this.#values(v) }
    return largestV ? { ...values, largestV: await this.#values(largestV) } : values
  }

  async close(): Promise<void> {
    await this.#source.close?.()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #values({ type, offset, bytes }: TensorPlace): Promise<Float32Array> {
    const target = new Uint8Array(bytes)
    await readFully(this.#source, target, offset, () => new Cursor(this.#source, offset).invalid('it became shorter'))
    return toFloat32(type, target)
  }
}

/** Writes such a file in fp32, whole or not at all; `states` gives as many as `count`. */
export async function writeAdamwFile(
  path: string | URL,
  groups: readonly AdamwFileGroup[],
  count: number,
  states: AsyncIterable<AdamwFileState> | Iterable<AdamwFileState>,
): Promise<void> {
  const file = await AtomicFile.create(checkPath('path', path))
  try {
    const name = new TextEncoder().encode(optimizerName)
    for (const part of [encodeVarint(name.length), name, encodeVarint(groups.length), encodeVarint(count)]) {
      await file.write(part)
    }
    for (const group of groups) await file.write(groupBytes(group))
    for await (const { step, shape, m, v, largestV } of states) {
      await file.write(new Uint8Array(BigInt64Array.of(BigInt(step)).buffer))
      await writeTensor(file, shape, m)
      await writeTensor(file, shape, v)
      await file.write(Uint8Array.of(largestV ? 1 : 0))
      if (largestV) await writeTensor(file, shape, largestV)
    }
    await file.commit()
  } catch (error) {
    await file.discard()
    throw error
  }
}

function groupBytes({ lr, initialLr, beta1, beta2, eps, weightDecay, amsgrad, maximize }: AdamwFileGroup): Uint8Array {
  const numbers = new Uint8Array(Float64Array.of(lr, initialLr, beta1, beta2, eps, weightDecay).buffer)
  return Uint8Array.of(...numbers, amsgrad ? 1 : 0, maximize ? 1 : 0)
}

async function writeTensor(file: AtomicFile, shape: readonly number[], values: Float32Array): Promise<void> {
  for (const number of [findElementType('float32')!.id, shape.length, ...shape]) await file.write(encodeVarint(number))
  await file.write(new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
}

/** Goes through the structure of a file and leaps over payloads. */
class Cursor {
  position: number
  readonly #source: ByteSource

  constructor(source: ByteSource, position = 0) {
    this.#source = source
    this.position = position
  }

  invalid(problem: string): Qwen3Nvfp4Error {
    const { name } = this.#source
    const message = `${name}: at byte ${this.position}, ${problem}`
    return new Qwen3Nvfp4Error('OPTIMIZER_FILE_INVALID', message, { file: name, offset: this.position })
  }

  async take(bytes: number): Promise<Uint8Array> {
    if (bytes > this.#source.size - this.position) throw this.invalid('it ends within a state')
    const target = new Uint8Array(bytes)
    await readFully(this.#source, target, this.position, () => this.invalid('it ends within a state'))
    this.position += bytes
    return target
  }

  async varint(): Promise<number> {
    const window = Math.min(maxVarintBytes, this.#source.size - this.position)
    const begin = this.position
    const bytes = await this.take(window)
    const decoded = decodeVarint(bytes, 0, bytes.length)
    this.position = begin
    if (typeof decoded === 'string') throw this.invalid(`a number is ${decoded}`)
    this.position = begin + decoded.next
    return decoded.value
  }

  async bool(): Promise<boolean> {
    const [byte] = await this.take(1)
    if (byte! > 1) throw this.invalid(`${byte} stands for a boolean`)
    return byte === 1
  }

  async group(): Promise<AdamwFileGroup> {
    const view = new DataView((await this.take(48)).buffer)
    const [lr, initialLr, beta1, beta2, eps, weightDecay] = [0, 8, 16, 24, 32, 40].map((at) =>
      view.getFloat64(at, true),
    )
    const numbers = {
      lr: lr!,
      initialLr: initialLr!,
      beta1: beta1!,
      beta2: beta2!,
      eps: eps!,
      weightDecay: weightDecay!,
    }
    return { ...numbers, amsgrad: await this.bool(), maximize: await this.bool() }
  }

  async state(): Promise<StatePlace> {
    const step = Number(new DataView((await this.take(8)).buffer).getBigInt64(0, true))
    if (!Number.isSafeInteger(step) || step < 0) throw this.invalid(`a state has taken ${step} steps`)
    const [m, v] = [await this.tensor(), await this.tensor()]
    const largestV = (await this.bool()) ? await this.tensor() : undefined
    for (const other of [v, largestV ?? m]) {
      if (String(other.shape) !== String(m.shape)) {
        throw this.invalid(`moments of one parameter are [${m.shape}] and [${other.shape}]`)
      }
    }
    return { step, shape: m.shape, m, v, ...(largestV && { largestV }) }
  }

  async tensor(): Promise<TensorPlace> {
    const id = await this.varint()
    const type = findElementType(id)
    if (type?.dtype !== 'float32' && type?.dtype !== 'float16' && type?.dtype !== 'bfloat16') {
      throw this.invalid(`moments have element type ${id}, which is no float`)
    }
    const dims = await this.varint()
    if (dims > largestDims) throw this.invalid(`a tensor has ${dims} dimensions`)
    const shape: number[] = []
    while (shape.length < dims) shape.push(await this.varint())
    const bytes = payloadBytes(shape, type.bytes)
    if (bytes === undefined || bytes > this.#source.size - this.position) {
      throw this.invalid(`a tensor of [${shape}] is longer than the file`)
    }
    const place = { type: type.dtype, shape, offset: this.position, bytes }
    this.position += bytes
    return place
  }
}
