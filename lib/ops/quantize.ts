/** The NVFP4 codec on typed arrays; docs/nvfp4.md has the layout. */
import type { BlockedScalesOptions, DequantizeOptions, QuantizeOptions } from '../../types/quantize'
import type { Nvfp4Matrix } from '../../types/tensor'
import {
  checkFloat32,
  checkInteger,
  checkNumber,
  checkOneOf,
  checkOptions,
  checkSeed,
  checkSignal,
  checkUint8,
  wrongType,
  wrongValue,
} from '../check'
import { awaitNative, throwIfAborted } from '../errors'
import { native } from '../native'
import { openDevice } from '../native-call'

const blockSize = 16

/** Elements handed to the core at once: copying them takes the JS thread about a millisecond. */
const chunkElements = 1 << 20

/**
 * Quantises a matrix f32[rows, cols] to NVFP4: E2M1 codes under one E4M3 scale for each 16 columns of a row.
 *
 * Works through the matrix in pieces off the JS thread; do not change `values` before the promise settles. The same
 * arguments give the same bytes on every machine and with any number of threads.
 *
 * @param values - f32[rows · cols], finite
 * @returns codes u8[rows, cols / 2], scales e4m3[rows, cols / 16], and the global scale
 * @throws TypeError or RangeError for a wrong argument; Qwen3Nvfp4Error NON_FINITE_WEIGHT, naming row and column, for a
 *   NaN or an infinity
 * @example
 * const matrix = await quantizeNvfp4(new Float32Array(32).fill(0.5), { rows: 2, cols: 16 })
 */
export async function quantizeNvfp4(values: Float32Array, options: QuantizeOptions): Promise<Nvfp4Matrix> {
  const given = checkOptions(options, 'options', [
    'rows',
    'cols',
    'scales',
    'rounding',
    'scaleRule',
    'seed',
    'device',
    'threads',
    'signal',
  ])
  const { rows, cols } = checkMatrixShape(given)
  const scaleLevels = checkOneOf('scales', given.scales ?? 'two-level', ['two-level', 'one-level'])
  const rounding = checkOneOf('rounding', given.rounding ?? 'nearest', ['nearest', 'stochastic'])
  const defaultRule = rounding === 'stochastic' ? 'amax-up' : 'amax'
  const scaleRule = checkOneOf('scaleRule', given.scaleRule ?? defaultRule, ['amax', 'four-over-six', 'amax-up'])
  const seed = checkSeed('seed', given.seed ?? 0)
  const signal = checkSignal(given.signal)
  checkFloat32('values', values, [rows, cols])
  const device = openDevice(given)

  let globalScale = 1
  if (scaleLevels === 'two-level') {
    let amax = 0
    await eachChunk(rows, cols, signal, async (firstRow, count) => {
      const chunk = values.subarray(firstRow * cols, (firstRow + count) * cols)
      amax = Math.max(amax, await awaitNative(() => native().amax(device, chunk, count, cols, firstRow)))
    })
    globalScale = native().twoLevelGlobalScale(amax)
  }
  const matrix: Nvfp4Matrix = {
    codes: new Uint8Array((rows * cols) / 2),
    scales: new Uint8Array((rows * cols) / blockSize),
    globalScale,
    rows,
    cols,
  }
  await eachChunk(rows, cols, signal, async (firstRow, count) => {
    const chunk = values.subarray(firstRow * cols, (firstRow + count) * cols)
    const part = await awaitNative(() =>
      native().quantizeNvfp4(device, chunk, count, cols, { globalScale, rounding, scaleRule, seed, firstRow }),
    )
    matrix.codes.set(part.codes, (firstRow * cols) / 2)
    matrix.scales.set(part.scales, (firstRow * cols) / blockSize)
  })
  return matrix
}

/**
 * The values of an NVFP4 matrix: e2m1(code) · e4m3(scale) · globalScale, rounded to f32 once.
 *
 * Do not change the matrix before the promise settles. A NaN scale (0x7F, 0xFF) gives NaNs.
 *
 * @returns f32[rows · cols]
 * @throws TypeError or RangeError for an array of another type or size than the shape says
 */
export async function dequantizeNvfp4(matrix: Nvfp4Matrix, options?: DequantizeOptions): Promise<Float32Array> {
  if (typeof matrix !== 'object' || matrix === null) throw wrongType('an NVFP4 matrix', 'matrix', matrix)
  const { rows, cols } = checkMatrixShape(matrix, 'matrix.')
  const codes = checkUint8('matrix.codes', matrix.codes, (rows * cols) / 2)
  const scales = checkUint8('matrix.scales', matrix.scales, (rows * cols) / blockSize)
  const globalScale = checkNumber('matrix.globalScale', matrix.globalScale)
  const given = checkOptions(options, 'options', ['device', 'threads', 'signal'])
  const signal = checkSignal(given.signal)
  const device = openDevice(given)

  const values = new Float32Array(rows * cols)
  await eachChunk(rows, cols, signal, async (firstRow, count) => {
    const begin = firstRow * cols
    const end = begin + count * cols
    const part = await awaitNative(() =>
      native().dequantizeNvfp4(
        device,
        codes.subarray(begin / 2, end / 2),
        scales.subarray(begin / blockSize, end / blockSize),
        count,
        cols,
        globalScale,
      ),
    )
    values.set(part, begin)
  })
  return values
}

/**
 * Block scales in the 128x4 swizzled order that cuBLASLt (VEC16_UE4M3) and torchao's `to_blocked` use.
 *
 * The scale of row r and block c goes to byte ((r / 128) · ceil(C / 4) + c / 4) · 512 + (r % 32) · 16 +
 * (r % 128 / 32) · 4 + c % 4, with C = cols / 16 and whole divisions; pads are zero.
 *
 * @param scales - e4m3[rows, cols / 16]
 * @returns ceil(rows / 128) · ceil(C / 4) · 512 bytes
 * @throws TypeError or RangeError for a wrong argument
 */
export async function toBlockedScales(scales: Uint8Array, options: BlockedScalesOptions): Promise<Uint8Array> {
  const { rows, cols } = checkMatrixShape(checkOptions(options))
  checkUint8('scales', scales, (rows * cols) / blockSize)
  return awaitNative(() => native().toBlockedScales(openDevice({}), scales, rows, cols / blockSize))
}

/**
 * The inverse of toBlockedScales(); pads are dropped.
 *
 * @param blocked - ceil(rows / 128) · ceil(C / 4) · 512 bytes, with C = cols / 16
 * @returns e4m3[rows, cols / 16]
 * @throws TypeError or RangeError for a wrong argument
 */
export async function fromBlockedScales(blocked: Uint8Array, options: BlockedScalesOptions): Promise<Uint8Array> {
  const { rows, cols } = checkMatrixShape(checkOptions(options))
  const scaleCols = cols / blockSize
  checkUint8('blocked', blocked, Math.ceil(rows / 128) * Math.ceil(scaleCols / 4) * 512)
  return awaitNative(() => native().fromBlockedScales(openDevice({}), blocked, rows, scaleCols))
}

function checkMatrixShape(shape: { rows: number; cols: number }, prefix = ''): { rows: number; cols: number } {
  const rows = checkInteger(`${prefix}rows`, shape.rows, 0)
  const cols = checkInteger(`${prefix}cols`, shape.cols, blockSize)
  if (cols % blockSize !== 0) throw wrongValue('a multiple of 16', `${prefix}cols`, cols)
  return { rows, cols }
}

/** Runs `work` over whole rows, about chunkElements at a time and in order. */
async function eachChunk(
  rows: number,
  cols: number,
  signal: AbortSignal | undefined,
  work: (firstRow: number, count: number) => Promise<void>,
): Promise<void> {
  const chunkRows = Math.max(1, Math.floor(chunkElements / cols))
  for (let row = 0; row < rows; row += chunkRows) {
    throwIfAborted(signal)
    await work(row, Math.min(chunkRows, rows - row))
  }
}
