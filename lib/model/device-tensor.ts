import type { NativeTensor } from '../../types/native'
import { checkInteger } from '../check'
import { awaitNative } from '../errors'

/** A result that stays on its device until it is read. */
export class DeviceTensor {
  /** Outermost first; the last dimension is contiguous. */
  readonly shape: readonly number[]
  readonly #native: NativeTensor

  /** @internal */
  constructor(tensor: NativeTensor, shape: readonly number[]) {
    this.#native = tensor
    this.shape = shape
  }

  /** A copy of all values, row-major; `rows` [begin, end) of the flattened outer dimensions for a part. */
  async toFloat32Array({ begin = 0, end = this.#native.rows } = {}): Promise<Float32Array> {
    checkInteger('begin', begin, 0, this.#native.rows)
    checkInteger('end', end, begin, this.#native.rows)
    return awaitNative(() => this.#native.read(begin, end))
  }

  /** Frees the device memory now rather than when the collector runs; again is harmless. */
  async dispose(): Promise<void> {
    await awaitNative(() => this.#native.dispose())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}
