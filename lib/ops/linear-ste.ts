import type { NativeDevice, NativeLinearSteContext, NativeModel } from '../../types/native'
import type { LinearSteOptions } from '../../types/options'
import { checkFloat32, checkInteger, checkOneOf, checkOptions, checkSignal, wrongType, wrongValue } from '../check'
import { awaitNative } from '../errors'
import { native } from '../native'
import { runNative } from '../native-call'

/** The output of a straight-through linear layer, and what its backward pass needs. */
export class LinearSteResult {
  /** f32[T, rows] */
  readonly y: Float32Array
  readonly #context: NativeLinearSteContext

  /** @internal */
  constructor(y: Float32Array, context: NativeLinearSteContext) {
    this.y = y
    this.#context = context
  }

  /**
   * For dy f32[T, rows]: dInput = dy · Q(w) f32[T, cols] and dWeight = dyᵀ · input f32[rows, cols], as if quantising
   * were the identity. May be called more than once.
   */
  async backward(dy: Float32Array): Promise<{ dInput: Float32Array; dWeight: Float32Array }> {
    checkFloat32('dy', dy, [this.y.length])
    return awaitNative(() => this.#context.backward(dy))
  }

  /** Frees the quantised weight; again is harmless. */
  async dispose(): Promise<void> {
    await awaitNative(() => this.#context.dispose())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}

/**
 * y = input · Q(weight)ᵀ. `named` is the model's matrix when `weight` is its name. On a GPU input, dy and dInput round to
 * bf16, as all activations there do.
 */
export async function linearSte(
  device: NativeDevice,
  input: Float32Array,
  weight: Float32Array | string,
  options: LinearSteOptions | undefined,
  named: { model: NativeModel; shape: readonly number[] } | undefined,
): Promise<LinearSteResult> {
  const given = checkOptions(options, 'options', ['rows', 'cols', 'scales', 'scaleRule', 'signal'])
  if (typeof weight === 'string' && named?.shape.length !== 2) {
    throw wrongValue('the name of a matrix of the model', 'weight', weight)
  }
  if (typeof weight !== 'string' && (given.rows === undefined || given.cols === undefined)) {
    throw wrongType('rows and cols of the weight', 'options', options)
  }
  const rows = checkInteger('rows', given.rows ?? named?.shape[0], 1)
  const cols = checkInteger('cols', given.cols ?? named?.shape[1], 1)
  if (typeof weight === 'string') {
    if (rows !== named!.shape[0]) throw wrongValue(`${named!.shape[0]}`, 'rows', rows)
    if (cols !== named!.shape[1]) throw wrongValue(`${named!.shape[1]}`, 'cols', cols)
  } else {
    if (cols % 16 !== 0) throw wrongValue('a multiple of 16', 'cols', cols)
    checkFloat32('weight', weight, [rows, cols])
  }
  // T is what is left of the input.
  const tokens = Math.max(1, Math.floor((input as Float32Array | undefined)?.length ?? 0) / cols)
  checkFloat32('input', input, [Number.isInteger(tokens) ? tokens : Math.ceil(tokens), cols])
  const args = {
    ...(typeof weight === 'string' ? { model: named!.model, parameter: weight } : { weight }),
    rows,
    cols,
    input,
    tokens,
    twoLevel: checkOneOf('scales', given.scales ?? 'two-level', ['two-level', 'one-level']) === 'two-level',
    scaleRule: checkOneOf('scaleRule', given.scaleRule ?? 'amax', ['amax', 'four-over-six']),
  }
  const { y, context } = await runNative(checkSignal(given.signal), (cancel) =>
    native().linearSte(device, args, cancel),
  )
  return new LinearSteResult(y, context)
}
