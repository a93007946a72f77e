import type { NativeModel, NativeParameterInfo } from '../../types/native'
import type { Codebook, WeightStorage } from '../../types/tensor'
import { checkFloat32 } from '../check'
import { awaitNative } from '../errors'

/** One named tensor of a model. */
export class Parameter {
  /** As the checkpoint names it, such as `model.layers.0.self_attn.q_proj.weight`. */
  readonly name: string
  /** [rows, cols] of a matrix, [cols] of a norm. */
  readonly shape: readonly number[]
  /** How it is stored. */
  readonly storage: WeightStorage
  /** Of 'bnb4'. */
  readonly codebook?: Codebook
  /** Number of elements. */
  readonly count: number
  /** @internal */
  trains = true
  readonly #model: NativeModel

  /** @internal */
  constructor(model: NativeModel, info: NativeParameterInfo) {
    this.#model = model
    this.name = info.name
    this.shape = info.isVector ? [info.cols] : [info.rows, info.cols]
    this.storage = info.storage
    if (info.codebook) this.codebook = info.codebook
    this.count = info.rows * info.cols
  }

  /** Whether backward passes make a gradient for it: true unless the last optimizer left it out. */
  get trainable(): boolean {
    return this.trains
  }

  /** The values that the forward pass uses, decoded to fp32. */
  async read(): Promise<Float32Array> {
    return awaitNative(() => this.#model.readValues(this.name))
  }

  /** Overwrites the values in the parameter's own storage: rounded to nearest, or quantised anew for NVFP4. */
  async write(values: Float32Array): Promise<void> {
    checkFloat32('values', values, this.shape)
    await awaitNative(() => this.#model.writeValues(this.name, values))
  }

  /** The gradient summed by backward passes since the last step or zeroGrad, in fp32; null when there is none. */
  async grad(): Promise<Float32Array | null> {
    return awaitNative(() => this.#model.readGradient(this.name))
  }
}
