import type { NativeGradientOptions, NativeLoss } from '../../types/native'
import type { BackwardOptions } from '../../types/options'
import { awaitNative } from '../errors'
import { runNative } from '../native-call'
import { checkBackward } from './forward-result'

/** A loss and its forward pass, kept on the device until `backward` or `dispose`. */
export class Loss {
  /** Mean cross-entropy over the counted labels, in nats, or mean distance of hidden states; 0 when nothing counts. */
  readonly value: number
  /** Tokens that count: those with a label that is not -100, or that are no padding. */
  readonly tokens: number
  readonly #native: NativeLoss
  readonly #gradients: () => NativeGradientOptions

  /** @internal */
  constructor(loss: NativeLoss, gradients: () => NativeGradientOptions) {
    this.#native = loss
    this.#gradients = gradients
    this.value = loss.value
    this.tokens = loss.tokens
  }

  /** Adds the gradients of `scale` times the loss to the parameters'. Once; frees the forward pass. */
  async backward(options?: BackwardOptions): Promise<void> {
    const { scale, gradients, signal } = checkBackward(options, this.#gradients())
    await runNative(signal, (cancel) => this.#native.tape.backward(null, scale, gradients, cancel))
  }

  /** Frees the forward pass of a loss that will not be differentiated; again is harmless. */
  async dispose(): Promise<void> {
    await awaitNative(() => this.#native.tape.dispose())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}
