import { dequantizeNvfp4, fromBlockedScales, quantizeNvfp4, toBlockedScales } from 'qwen3-nvfp4'
import type { QuantizeOptions } from 'qwen3-nvfp4'
import { ops } from '../support/native-ops'
import { gaussian } from '../support/random'

const rows = 33
const cols = 48

describe('quantizeNvfp4', () => {
  it('gives the bytes of the core, two levels and nearest rounding by default', async () => {
    const x = gaussian(rows * cols, 0.02)
    const globalScale = ops.twoLevelGlobalScale!(ops.amax!(x, rows, cols))
    const codes = new Uint8Array((rows * cols) / 2)
    const scales = new Uint8Array((rows * cols) / 16)
    ops.quantizeNvfp4!(codes, scales, x, rows, cols, { globalScale })
    expect(await quantizeNvfp4(x, { rows, cols })).toEqual({ codes, scales, globalScale, rows, cols })
    expect((await quantizeNvfp4(x, { rows, cols, scales: 'one-level' })).globalScale).toBe(1)
  })

  it('gives the same bytes when the matrix is worked through in pieces', async () => {
    const bigRows = 20
    const bigCols = 65536
    const x = gaussian(bigRows * bigCols, 0.02)
    const globalScale = ops.twoLevelGlobalScale!(ops.amax!(x, bigRows, bigCols))
    const codes = new Uint8Array(x.length / 2)
    const scales = new Uint8Array(x.length / 16)
    const core = { globalScale, rounding: 'stochastic', scaleRule: 'amax-up', seed: 11n }
    ops.quantizeNvfp4!(codes, scales, x, bigRows, bigCols, core)
    const matrix = await quantizeNvfp4(x, { rows: bigRows, cols: bigCols, rounding: 'stochastic', seed: 11 })
    expect(matrix.globalScale).toBe(globalScale)
    expect(Buffer.compare(matrix.codes, codes)).toBe(0)
    expect(Buffer.compare(matrix.scales, scales)).toBe(0)
    const values = new Float32Array(x.length)
    ops.dequantizeNvfp4!(values, codes, scales, bigRows, bigCols, { globalScale })
    const back = await dequantizeNvfp4(matrix, { threads: 2 })
    expect(Buffer.compare(Buffer.from(back.buffer), Buffer.from(values.buffer))).toBe(0)
  })

  it('lets timers run meanwhile', async () => {
    const x = gaussian(1 << 21, 0.02)
    let ticks = 0
    const timer = setInterval(() => ticks++, 1)
    await quantizeNvfp4(x, { rows: 1 << 10, cols: 1 << 11, rounding: 'stochastic' })
    clearInterval(timer)
    expect(ticks).toBeGreaterThan(3)
  })

  it('refuses wrong arguments politely', async () => {
    const x = new Float32Array(32)
    const refuse = (options: unknown) => expect(quantizeNvfp4(x, options as QuantizeOptions)).rejects
    await refuse({ rows: 2 }).toThrow('Expected an integer for cols but received undefined')
    await refuse({ rows: 4, cols: 8 }).toThrow('Expected an integer of at least 16 for cols but received 8')
    await refuse({ rows: 1, cols: 24 }).toThrow('Expected a multiple of 16 for cols but received 24')
    await refuse({ rows: 3, cols: 16 }).toThrow('Expected f32[3, 16] for values but received f32[32]')
    await refuse({ rows: 2, cols: 16, scale: 'one-level' }).toThrow('did you mean scales?')
    await refuse({ rows: 2, cols: 16, rounding: 'up' }).toThrow("Expected 'nearest' | 'stochastic' for rounding")
    await refuse({ rows: 2, cols: 16, seed: -1 }).toThrow(RangeError)
    await refuse({ rows: 2, cols: 16, threads: 0 }).toThrow('threads')
    await expect(quantizeNvfp4([1, 2] as never, { rows: 2, cols: 16 })).rejects.toThrow(TypeError)
    x[21] = NaN
    await refuse({ rows: 2, cols: 16 }).toMatchObject({ code: 'NON_FINITE_WEIGHT' })
    await refuse({ rows: 2, cols: 16, scales: 'one-level' }).toThrow('row 1, column 5')
  })

  it('stops with the reason of an aborted signal', async () => {
    const signal = AbortSignal.abort(new Error('enough'))
    await expect(quantizeNvfp4(new Float32Array(16), { rows: 1, cols: 16, signal })).rejects.toThrow('enough')
  })

  it('takes a matrix without rows', async () => {
    const empty = await quantizeNvfp4(new Float32Array(0), { rows: 0, cols: 16 })
    expect(empty).toEqual({ codes: new Uint8Array(0), scales: new Uint8Array(0), globalScale: 1, rows: 0, cols: 16 })
    expect(await dequantizeNvfp4(empty)).toEqual(new Float32Array(0))
  })
})

describe('dequantizeNvfp4', () => {
  it('refuses arrays that do not fit the shape', async () => {
    const matrix = await quantizeNvfp4(gaussian(rows * cols, 1), { rows, cols })
    await expect(dequantizeNvfp4({ ...matrix, rows: 32 })).rejects.toThrow('Expected u8[768] for matrix.codes')
    await expect(dequantizeNvfp4({ ...matrix, scales: new Uint8Array(3) })).rejects.toThrow('matrix.scales')
    await expect(dequantizeNvfp4({ ...matrix, globalScale: NaN })).rejects.toThrow('matrix.globalScale')
    await expect(dequantizeNvfp4(null as never)).rejects.toThrow('Expected an NVFP4 matrix for matrix')
  })
})

describe('blocked scales', () => {
  it('go there and back, and refuse another size', async () => {
    const scales = Uint8Array.from({ length: 300 * 10 }, (_, i) => 1 + (i % 120))
    const blocked = await toBlockedScales(scales, { rows: 300, cols: 160 })
    expect(blocked.length).toBe(3 * 3 * 512)
    expect(blocked[512 + 16]).toBe(scales[1 * 10 + 4])
    expect(await fromBlockedScales(blocked, { rows: 300, cols: 160 })).toEqual(scales)
    await expect(toBlockedScales(scales, { rows: 300, cols: 176 })).rejects.toThrow('Expected u8[3300] for scales')
    await expect(fromBlockedScales(scales, { rows: 300, cols: 160 })).rejects.toThrow('Expected u8[4608] for blocked')
  })
})
