import type { NativeForwardOutput, NativeGradientOptions, NativeTape } from '../../types/native'
import type { BackwardOptions } from '../../types/options'
import { checkFloat32, checkNumber, checkOneOf, checkOptions, checkSignal } from '../check'
import { awaitNative } from '../errors'
import { runNative } from '../native-call'
import { DeviceTensor } from './device-tensor'

export interface ForwardShape {
  batch: number
  tokens: number
  hiddenSize: number
  vocabSize: number
}

/** Logits and hidden states of a forward pass; they stay on the device until read. */
export class ForwardResult {
  /** [B, T, H] each: the input of every layer, then the state after the final norm. Empty unless asked for. */
  readonly hiddenStates: readonly DeviceTensor[]
  readonly #logits: DeviceTensor | undefined

  /** @internal */
  constructor(output: NativeForwardOutput, shape: ForwardShape, logits: 'all' | 'last' | 'none') {
    const { batch, tokens, hiddenSize, vocabSize } = shape
    const rows = logits === 'all' ? [batch, tokens] : [batch]
    this.#logits = output.logits && new DeviceTensor(output.logits, [...rows, vocabSize])
    this.hiddenStates = output.hidden.map((state) => new DeviceTensor(state, [batch, tokens, hiddenSize]))
  }

  /** [B, T, V] with logits 'all', [B, V] with 'last'; a TypeError with 'none'. */
  get logits(): DeviceTensor {
    if (!this.#logits) throw new TypeError("Expected logits 'all' or 'last' for reading logits but received 'none'")
    return this.#logits
  }

  /** Frees everything that was not read. */
  async dispose(): Promise<void> {
    await Promise.all([this.#logits, ...this.hiddenStates].map((tensor) => tensor?.dispose()))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}

/** Options of a backward pass, as the addon takes them. */
export function checkBackward(options: BackwardOptions | undefined, defaults: NativeGradientOptions) {
  const { scale = 1, gradients, signal } = checkOptions(options, 'options', ['scale', 'gradients', 'signal'])
  const format =
    gradients === undefined ? defaults.format : checkOneOf('gradients', gradients, ['fp32', 'bf16', 'nvfp4'])
  return { scale: checkNumber('scale', scale), gradients: { ...defaults, format }, signal: checkSignal(signal) }
}

/** A forward pass that can be differentiated, for losses of the caller's own. */
export class DifferentiableForwardResult extends ForwardResult {
  readonly #tape: NativeTape
  readonly #shape: ForwardShape
  readonly #gradients: () => NativeGradientOptions

  /** @internal */
  constructor(
    output: NativeForwardOutput & { tape: NativeTape },
    shape: ForwardShape,
    gradients: () => NativeGradientOptions,
  ) {
    super(output, shape, 'all')
    this.#tape = output.tape
    this.#shape = shape
    this.#gradients = gradients
  }

  /** Adds the gradients of Σ dLogits · logits, dLogits f32[B, T, V], to the parameters'. Once. */
  async backward(dLogits: Float32Array, options?: BackwardOptions): Promise<void> {
    const { batch, tokens, vocabSize } = this.#shape
    checkFloat32('dLogits', dLogits, [batch, tokens, vocabSize])
    const { scale, gradients, signal } = checkBackward(options, this.#gradients())
    await runNative(signal, (cancel) => this.#tape.backward(dLogits, scale, gradients, cancel))
  }

  override async dispose(): Promise<void> {
    await Promise.all([super.dispose(), awaitNative(() => this.#tape.dispose())])
  }
}
