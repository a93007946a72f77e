/** A parameter with its packed AdamW state in typed arrays, as ops.adamw takes it, and what the bytes mean. */
import { ops, type OpOptions } from './native-ops'

export type Storage = 'nvfp4' | 'fp32' | 'fp16' | 'bf16'
export type WeightMode = 'nvfp4' | 'nvfp4+residual' | 'bf16' | 'fp32'
export type Moments = 'nvfp4' | 'int8' | 'bf16' | 'fp32'

export interface AdamwState {
  N: number
  K: number
  storage: Storage
  mode: WeightMode
  moments: Moments
  dense: Float32Array | Uint16Array
  codes: Uint8Array
  scales: Uint8Array
  residualCodes: Uint8Array
  residualScales: Uint8Array
  master: Float32Array | Uint16Array
  mValues: Uint8Array
  mScales: Uint8Array
  mRows: Float32Array
  vValues: Uint8Array
  vScales: Uint8Array
  vRows: Float32Array
}

export interface StepOptions {
  lr: number
  betas?: [number, number]
  eps?: number
  keep?: number
  seed?: number
  parameter?: number
  gradientScale?: number
  chunkRows?: number
  /** Replaces a and b of ops/adamw.h. */
  rates?: { a: number; b: number }
}

const MAGNITUDES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
const VALUE_BYTES = { nvfp4: 0.5, int8: 1, bf16: 2, fp32: 4 }

export const e2m1 = (code: number): number => (code & 8 ? -1 : 1) * MAGNITUDES[code & 7]!
export const e4m3 = (code: number): number =>
  code < 8 ? code * 2 ** -9 : (1 + (code & 7) / 8) * 2 ** ((code >> 3) - 7)
export const bf16 = (bits: number): number => new Float32Array(new Uint32Array([bits << 16]).buffer)[0]!
const codeAt = (codes: Uint8Array, i: number): number => (codes[i >> 1]! >> ((i & 1) * 4)) & 15

/** Values of NVFP4 codes under scales, in units of the global scale. */
export const decode = (codes: Uint8Array, scales: Uint8Array): Float64Array =>
  Float64Array.from({ length: codes.length * 2 }, (_, i) => e2m1(codeAt(codes, i)) * e4m3(scales[i >> 4]!))

/** Quantises to the nearest codes under amax/6 scales: a start for tests, not the codec. */
function quantize(x: ArrayLike<number>): { codes: Uint8Array; scales: Uint8Array } {
  const codes = new Uint8Array(x.length / 2)
  const scales = new Uint8Array(x.length / 16)
  for (let b = 0; b < scales.length; b++) {
    let amax = 0
    for (let i = 0; i < 16; i++) amax = Math.max(amax, Math.abs(x[16 * b + i]!))
    let code = 0
    while (code < 126 && e4m3(code) < amax / 6) code++
    if (code === 0) continue
    scales[b] = code
    for (let i = 16 * b; i < 16 * b + 16; i++) {
      const a = Math.abs(x[i]!) / e4m3(code)
      let nearest = 0
      for (let k = 1; k < 8; k++) if (Math.abs(MAGNITUDES[k]! - a) < Math.abs(MAGNITUDES[nearest]! - a)) nearest = k
      codes[i >> 1]! |= (nearest | (x[i]! < 0 ? 8 : 0)) << ((i & 1) * 4)
    }
  }
  return { codes, scales }
}

/** State before step 1 for weights x (in units of the global scale when they are stored in NVFP4). */
export function makeState(
  N: number,
  K: number,
  x: Float32Array,
  kinds: { storage?: Storage; mode?: WeightMode; moments?: Moments },
): AdamwState {
  const { storage = 'nvfp4', mode = 'nvfp4', moments = 'nvfp4' } = kinds
  const count = N * K
  const packed = storage === 'nvfp4' ? quantize(x) : { codes: new Uint8Array(), scales: new Uint8Array() }
  const values = storage === 'nvfp4' ? Float32Array.from(decode(packed.codes, packed.scales)) : x
  const toBf16 = (from: Float32Array) => Uint16Array.from(new Uint32Array(from.slice().buffer), (bits) => bits >>> 16)
  const moment = () => new Uint8Array(count * VALUE_BYTES[moments])
  return {
    N,
    K,
    storage,
    mode,
    moments,
    dense: storage === 'fp32' ? x.slice() : storage === 'bf16' ? toBf16(x) : new Uint16Array(count),
    codes: packed.codes,
    scales: packed.scales,
    residualCodes: new Uint8Array(count / 2),
    residualScales: new Uint8Array(count / 16),
    master: mode === 'bf16' ? toBf16(values) : values.slice(),
    mValues: moment(),
    mScales: new Uint8Array(count / 16),
    mRows: new Float32Array(N),
    vValues: moment(),
    vScales: new Uint8Array(count / 16),
    vRows: new Float32Array(N),
  }
}

export const copyState = (state: AdamwState): AdamwState => structuredClone(state)

/** Every byte of weights and state. */
export const bytesOf = (state: AdamwState): Buffer =>
  Buffer.concat(
    Object.values(state)
      .filter((value): value is Uint8Array => ArrayBuffer.isView(value))
      .map((array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength)),
  )

/** Step `step` (from 1) with gradient g f32[N, K], in chunks of rows. */
export function takeStep(state: AdamwState, g: Float32Array, step: number, options: StepOptions, on: OpOptions = {}) {
  const [beta1, beta2] = options.betas ?? [0.9, 0.999]
  const { N, K } = state
  const chunk = options.chunkRows ?? N
  const total = { updateSquares: 0, changedCodes: 0, saturated: 0 }
  for (let rowBegin = 0; rowBegin < N; rowBegin += chunk) {
    const rowCount = Math.min(chunk, N - rowBegin)
    const result = ops.adamw!(
      {
        ...state,
        g: g.subarray(rowBegin * K, (rowBegin + rowCount) * K),
        rowBegin,
        rowCount,
        gradientScale: options.gradientScale ?? 1,
        a: options.rates?.a ?? (1 - beta1) / (1 - beta1 ** step),
        b: options.rates?.b ?? (1 - beta2) / (1 - beta2 ** step),
        eps: options.eps ?? 1e-8,
        rate: options.lr,
        keep: options.keep ?? 1,
        seed: options.seed ?? 1,
        parameter: options.parameter ?? 0,
        step,
      },
      on,
    )
    total.updateSquares += result.updateSquares
    total.changedCodes += result.changedCodes
    total.saturated += result.saturated
  }
  return { ...total, updateRms: Math.sqrt(total.updateSquares / (N * K)) }
}

/** 2 ** octaves as second moments have it (docs/numerics.md), to .2 %. */
function secondOf(octaves: number): number {
  const whole = Math.floor(octaves)
  return 2 ** whole * (3 - Math.sqrt(4 - 3 * (octaves - whole)))
}

/** log2 of the second moment relative to its row's centre, as packed moments have it. */
function octavesOf({ moments, vValues, vScales }: AdamwState, i: number): number {
  const code = moments === 'nvfp4' ? e2m1(codeAt(vValues, i)) : new Int8Array(vValues.buffer)[i]!
  return code * e4m3(vScales[i >> 4]!)
}
const centreOf = (state: AdamwState, i: number): number => state.vRows[Math.floor(i / state.K)]!

/** The second moment as numbers. */
export function secondMoment(state: AdamwState): Float64Array {
  const { K, moments, vValues } = state
  return Float64Array.from({ length: state.N * K }, (_, i) => {
    if (moments === 'fp32') return new Float32Array(vValues.buffer)[i]!
    if (moments === 'bf16') return bf16(new Uint16Array(vValues.buffer)[i]!)
    return 2 ** centreOf(state, i) * secondOf(octavesOf(state, i))
  })
}

/** The first moment as numbers. */
export function firstMoment(state: AdamwState): Float64Array {
  const { K, moments, mValues } = state
  return Float64Array.from({ length: state.N * K }, (_, i) => {
    if (moments === 'fp32') return new Float32Array(mValues.buffer)[i]!
    if (moments === 'bf16') return bf16(new Uint16Array(mValues.buffer)[i]!)
    const code = moments === 'nvfp4' ? e2m1(codeAt(mValues, i)) : new Int8Array(mValues.buffer)[i]!
    return (
      code *
      e4m3(state.mScales[i >> 4]!) *
      state.mRows[Math.floor(i / K)]! *
      2 ** ((centreOf(state, i) + octavesOf(state, i)) / 2)
    )
  })
}

/** AdamW as torch.optim.AdamW writes it, in f64: raw moments, bias correction at the end, decoupled decay. */
export class ReferenceAdamw {
  readonly m: Float64Array
  readonly v: Float64Array
  constructor(readonly x: Float64Array) {
    this.m = new Float64Array(x.length)
    this.v = new Float64Array(x.length)
  }
  /** Returns the RMS of the update. */
  step(g: ArrayLike<number>, t: number, lr: number, decay = 0, [beta1, beta2] = [0.9, 0.999], eps = 1e-8): number {
    let squares = 0
    for (let i = 0; i < this.x.length; i++) {
      this.m[i] = beta1! * this.m[i]! + (1 - beta1!) * g[i]!
      this.v[i] = beta2! * this.v[i]! + (1 - beta2!) * g[i]! * g[i]!
      const u = this.m[i]! / (1 - beta1! ** t) / (Math.sqrt(this.v[i]! / (1 - beta2! ** t)) + eps)
      squares += u * u
      this.x[i] = this.x[i]! * (1 - lr * decay) - lr * u
    }
    return Math.sqrt(squares / this.x.length)
  }
}
