import { readSafetensors } from '../support/safetensors'
import { describeWithShared, sharedPath } from '../support/files'
import { gaussian as gaussianValues, uniformSource } from '../support/random'
import { isaLevels as isas } from '../support/isa-levels'
import { ops } from '../support/native-ops'

interface CodecOptions {
  isa?: (typeof isas)[number]
  threads?: number
  globalScale?: number
  rounding?: 'nearest' | 'stochastic'
  scaleRule?: 'amax' | 'four-over-six' | 'amax-up'
  seed?: number | bigint
  firstRow?: number
}

const magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
const e2m1 = (code: number): number => (code & 8 ? -1 : 1) * magnitudes[code & 7]!
/** The value of an E4M3 byte, written from the format's definition and not from the code under test. */
function e4m3(byte: number): number {
  const exponent = (byte >> 3) & 15
  const mantissa = byte & 7
  if (exponent === 15 && mantissa === 7) return NaN
  const magnitude = exponent === 0 ? mantissa * 2 ** -9 : (1 + mantissa / 8) * 2 ** (exponent - 7)
  return byte & 128 ? -magnitude : magnitude
}

function quantize(x: Float32Array, rows: number, cols: number, options: CodecOptions = {}) {
  const codes = new Uint8Array((rows * cols) / 2)
  const scales = new Uint8Array((rows * cols) / 16)
  ops.quantizeNvfp4!(codes, scales, x, rows, cols, options)
  return { codes, scales }
}

function dequantize(codes: Uint8Array, scales: Uint8Array, rows: number, cols: number, options: CodecOptions = {}) {
  const out = new Float32Array(rows * cols)
  ops.dequantizeNvfp4!(out, codes, scales, rows, cols, options)
  return out
}

/** Fails unless both hold the same bytes; far faster than toEqual on large arrays. */
function expectSameBytes(actual: { codes: Uint8Array; scales: Uint8Array }, expected: typeof actual): void {
  expect(Buffer.compare(actual.codes, expected.codes)).toBe(0)
  expect(Buffer.compare(actual.scales, expected.scales)).toBe(0)
}

/** 10·log10(Σx² / Σ(x − q)²) after one trip through NVFP4. */
function signalToNoise(x: Float32Array, rows: number, cols: number, options: CodecOptions): number {
  const { codes, scales } = quantize(x, rows, cols, options)
  const back = dequantize(codes, scales, rows, cols, options)
  let signal = 0
  let noise = 0
  x.forEach((value, i) => {
    signal += value ** 2
    noise += (value - back[i]!) ** 2
  })
  return 10 * Math.log10(signal / noise)
}

describe('E2M1 and E4M3', () => {
  it('decodes all 16 codes under all 256 scales', () => {
    for (const isa of isas) {
      for (let scale = 0; scale < 256; scale++) {
        const codes = Uint8Array.from({ length: 8 }, (_, j) => (2 * j) | ((2 * j + 1) << 4))
        const values = dequantize(codes, Uint8Array.of(scale), 1, 16, { isa, globalScale: 0.25 })
        for (let code = 0; code < 16; code++) expect(values[code]).toBe(e2m1(code) * e4m3(scale) * 0.25)
      }
    }
  })

  it('puts the even column into the low nibble: {0.5, -6} is the byte 0xF1', () => {
    const x = new Float32Array(16)
    x.set([0.5, -6])
    const { codes, scales } = quantize(x, 1, 16)
    expect(scales[0]).toBe(0x38)
    expect(codes[0]).toBe(0xf1)
  })

  it('encodes every code and every scale to itself', () => {
    const decoded = new Float32Array(16)
    ops.decodeE2m1!(
      decoded,
      Uint8Array.from({ length: 16 }, (_, i) => i),
    )
    const codes = new Uint8Array(16)
    ops.encodeE2m1!(codes, decoded)
    expect([...codes]).toEqual([...Array(16).keys()])
    const bytes = Uint8Array.from([...Array(256).keys()].filter((byte) => (byte & 127) !== 127))
    const values = new Float32Array(bytes.length)
    const again = new Uint8Array(bytes.length)
    ops.decodeE4m3!(values, bytes)
    ops.encodeE4m3!(again, values)
    expect(again).toEqual(bytes)
  })

  it('rounds the ties of E2M1 to the even code and saturates at 6', () => {
    const x = Float32Array.of(0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 7, 1e30, -0.25, -5, -0)
    const codes = new Uint8Array(x.length)
    ops.encodeE2m1!(codes, x)
    expect([...codes]).toEqual([0, 2, 2, 4, 4, 6, 6, 7, 7, 8, 14, 8])
  })

  it('rounds scales up to the smallest E4M3 number that is not below', () => {
    const uniform = uniformSource(3)
    const x = Float32Array.from({ length: 4000 }, () => 500 * uniform() ** 8)
    const up = new Uint8Array(x.length)
    ops.encodeE4m3Up!(up, x)
    x.forEach((value, i) => {
      expect(e4m3(up[i]!)).toBeGreaterThanOrEqual(Math.min(value, 448))
      if (up[i]! > 0) expect(e4m3(up[i]! - 1)).toBeLessThan(value)
    })
  })

  describeWithShared('against ml_dtypes', ['formats', 'formats.safetensors'], () => {
    const shared = () => readSafetensors(sharedPath('formats', 'formats.safetensors'))
    const table = (name: string) => shared().get(name)!.data as Float32Array

    it.each(['e2m1', 'e4m3'] as const)('%s decodes and encodes to the same bytes', (format) => {
      const [encode, decode] =
        format === 'e2m1' ? [ops.encodeE2m1!, ops.decodeE2m1!] : [ops.encodeE4m3!, ops.decodeE4m3!]
      const expected = table(`${format}.decode`)
      const values = new Float32Array(expected.length)
      decode(values, Uint8Array.from(expected.keys()))
      expect(values).toEqual(expected)
      const x = table(`${format}.x`)
      const codes = new Uint8Array(x.length)
      encode(codes, x)
      expect(codes).toEqual(shared().get(`${format}.code`)!.data)
    })
  })
})

describe('two-level scale', () => {
  it('is the smallest power of two that keeps every block scale within E4M3', () => {
    for (const amax of [2688, 2688.001, 1, 0.02, 1e-12, 3e38]) {
      const scale = ops.twoLevelGlobalScale!(amax)
      expect(Number.isInteger(Math.log2(scale))).toBe(true)
      expect(Math.fround(amax)).toBeLessThanOrEqual(scale * 2688)
      expect(Math.fround(amax)).toBeGreaterThan(scale * 1344)
    }
    expect(ops.twoLevelGlobalScale!(0)).toBe(1)
    expect(ops.twoLevelGlobalScale!(1e-44)).toBe(2 ** -126)
  })
})

describe('quantizeNvfp4', () => {
  const rows = 128
  const cols = 1024
  const gaussian = (sigma: number) => gaussianValues(rows * cols, sigma, 17)
  const twoLevel = (x: Float32Array) => ops.twoLevelGlobalScale!(ops.amax!(x, rows, cols)) as number

  it.each([1e-12, 1e-6, 1e-3, 0.02, 1, 1e2])('keeps 20.4 dB, four-over-six 21.2 dB, of a Gaussian with σ = %p', (σ) => {
    const x = gaussian(σ)
    const globalScale = twoLevel(x)
    // The limits less the sampling error of 131072 values (0.015 dB).
    expect(signalToNoise(x, rows, cols, { globalScale })).toBeGreaterThan(20.38)
    expect(signalToNoise(x, rows, cols, { globalScale, scaleRule: 'four-over-six' })).toBeGreaterThan(21.17)
  })

  it('loses small weights with one level, which is why there are two', () => {
    expect(signalToNoise(gaussian(1e-3), rows, cols, {})).toBeLessThan(1)
    expect(signalToNoise(gaussian(0.02), rows, cols, {})).toBeLessThan(20)
    expect(signalToNoise(gaussian(1), rows, cols, {})).toBeGreaterThan(20.38)
  })

  it.each(['amax', 'four-over-six', 'amax-up'] as const)('is idempotent under %s', (scaleRule) => {
    const x = gaussian(0.02)
    const options = { globalScale: twoLevel(x), scaleRule }
    const once = quantize(x, rows, cols, options)
    const values = dequantize(once.codes, once.scales, rows, cols, options)
    expectSameBytes(quantize(values, rows, cols, options), once)
  })

  it('leaves values on the grid alone when rounding stochastically', () => {
    const x = gaussian(0.02)
    const options = { globalScale: twoLevel(x) }
    const once = quantize(x, rows, cols, options)
    const values = dequantize(once.codes, once.scales, rows, cols, options)
    expectSameBytes(quantize(values, rows, cols, { ...options, rounding: 'stochastic', seed: 5 }), once)
  })

  it('decodes a block of zeros, and a block too small for its scale, to zeros', () => {
    const x = new Float32Array(32)
    x.fill(-1e-5, 16)
    const { codes, scales } = quantize(x, 1, 32)
    expect([...scales]).toEqual([0, 0])
    expect(codes.every((byte) => byte === 0)).toBe(true)
  })

  it('gives the same bytes on every instruction set, thread count and run', () => {
    const x = gaussian(0.02)
    x[5] = 0
    x[6] = -0
    x.fill(0, 64, 80)
    x.set([1e-30, -1e-20, 5], 96)
    for (const scaleRule of ['amax', 'four-over-six', 'amax-up'] as const) {
      for (const rounding of ['nearest', 'stochastic'] as const) {
        const options = { globalScale: 2 ** -9 / 3, scaleRule, rounding, seed: 9 }
        const truth = quantize(x, rows, cols, { ...options, isa: 'portable', threads: 1 })
        const values = dequantize(truth.codes, truth.scales, rows, cols, { ...options, isa: 'portable' })
        for (const isa of isas) {
          for (const threads of [1, 3]) {
            expectSameBytes(quantize(x, rows, cols, { ...options, isa, threads }), truth)
            const back = dequantize(truth.codes, truth.scales, rows, cols, { ...options, isa, threads })
            expect(Buffer.compare(new Uint8Array(back.buffer), new Uint8Array(values.buffer))).toBe(0)
          }
        }
      }
    }
  })

  it('draws by global row: a tensor in two pieces equals the whole', () => {
    const x = gaussian(0.02)
    const options = { globalScale: twoLevel(x), rounding: 'stochastic', seed: 2n ** 63n + 1n } as const
    const whole = quantize(x, rows, cols, options)
    const rest = quantize(x.slice(48 * cols), rows - 48, cols, { ...options, firstRow: 48 })
    expect(rest.codes).toEqual(whole.codes.slice((48 * cols) / 2))
    expect(quantize(x, rows, cols, { ...options, seed: 1 }).codes).not.toEqual(whole.codes)
  })

  it.each([
    [0.5, 1 << 20],
    [1e-2, 1 << 20],
    [1e-4, 1 << 22],
    [1e-6, 1 << 25],
  ])('rounds up with probability %p within four standard errors', (p, draws) => {
    // One column per block holds the scale at 1; the other 15 lie p of a step above 0 (steps of 0.5) or, in odd blocks,
    // beyond -4 (steps of 2).
    const count = draws / 16
    const x = new Float32Array(draws)
    for (let block = 0; block < count; block++) {
      x.fill(block % 2 ? -(4 + 2 * p) : 0.5 * p, block * 16, block * 16 + 15)
      x[block * 16 + 15] = 6
    }
    const { codes, scales } = quantize(x, count, 16, { rounding: 'stochastic', scaleRule: 'amax-up', seed: 21 })
    expect(scales.every((scale) => scale === 0x38)).toBe(true)
    let ups = 0
    for (let i = 0; i < draws; i++) {
      if (i % 16 === 15) continue
      const code = (codes[i >> 1]! >> (4 * (i & 1))) & 15
      const below = (i >> 4) % 2 ? 14 : 0
      if (code === below + 1) ups++
      else if (code !== below) throw new Error(`element ${i} became code ${code}`)
    }
    // The probability that the input has in float32 and that 24 random bits can express.
    const offered = [Math.fround(0.5 * p) / 0.5, (Math.fround(4 + 2 * p) - 4) / 2].map((q) => Math.round(q * 2 ** 24))
    const expected = (offered[0]! + offered[1]!) / 2 / 2 ** 24
    const trials = 15 * count
    expect(Math.abs(ups / trials - expected)).toBeLessThan(4 * Math.sqrt((expected * (1 - expected)) / trials))
    expect(ups).toBeGreaterThan(0)
  })

  it.each([NaN, Infinity, -Infinity])('refuses %p and names its place', (bad) => {
    const x = new Float32Array(3 * 48)
    x[2 * 48 + 17] = bad
    for (const isa of isas) {
      expect(() => quantize(x, 3, 48, { isa })).toThrow(/row 2, column 17/)
      expect(() => ops.amax!(x, 3, 48, { isa })).toThrow(expect.objectContaining({ code: 'NON_FINITE_WEIGHT' }))
    }
  })
})

describe('blocked scales', () => {
  it('lie where NVIDIA draws them: a worked example of [160, 6], two tiles across and two down', () => {
    const [rows, cols] = [160, 6]
    const places = [
      { row: 0, col: 0, byte: 0 },
      { row: 0, col: 3, byte: 3 },
      { row: 32, col: 0, byte: 4 }, // the second group of 32 rows, beside the first
      { row: 1, col: 0, byte: 16 },
      { row: 37, col: 2, byte: 86 }, // 5 · 16 + 1 · 4 + 2: row 5 of group 1
      { row: 127, col: 3, byte: 511 }, // the end of the first tile
      { row: 0, col: 4, byte: 512 }, // the tile to the right
      { row: 128, col: 0, byte: 1024 }, // the tile below
      { row: 130, col: 5, byte: 1569 }, // 3 · 512 + 2 · 16 + 0 · 4 + 1: row 2 of group 0 in the last tile
    ]
    for (const { row, col, byte } of places) {
      const scales = new Uint8Array(rows * cols)
      scales[row * cols + col] = 0x38
      const blocked = new Uint8Array(4 * 512).fill(255)
      ops.toBlockedScales!(blocked, scales, rows, cols)
      const expected = new Uint8Array(4 * 512)
      expected[byte] = 0x38
      expect(Buffer.compare(blocked, expected)).toBe(0)
    }
  })

  it.each([
    [128, 4],
    [300, 10],
    [256, 160],
  ])('follow the offset formula for [%i, %i] and come back', (rows, cols) => {
    const uniform = uniformSource(rows)
    const scales = Uint8Array.from({ length: rows * cols }, () => 1 + Math.floor(uniform() * 126))
    const tilesPerRow = Math.ceil(cols / 4)
    const blocked = new Uint8Array(Math.ceil(rows / 128) * tilesPerRow * 512).fill(255)
    ops.toBlockedScales!(blocked, scales, rows, cols)
    const expected = new Uint8Array(blocked.length)
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < cols; c++) {
        const tile = Math.floor(r / 128) * tilesPerRow + Math.floor(c / 4)
        expected[tile * 512 + (r % 32) * 16 + Math.floor((r % 128) / 32) * 4 + (c % 4)] = scales[r * cols + c]!
      }
    }
    expect(Buffer.compare(blocked, expected)).toBe(0)
    const back = new Uint8Array(rows * cols)
    ops.fromBlockedScales!(back, blocked, rows, cols)
    expect(back).toEqual(scales)
  })
})

describe('Philox4x32-10', () => {
  it.each([
    [[0, 0, 0, 0], 0n, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]],
    [Array(4).fill(0xffffffff), 2n ** 64n - 1n, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      0x299f31d0a4093822n,
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ])("gives Random123's published words for counter %p", (counter, key, words) => {
    expect([...ops.philox4x32!(...counter, key)]).toEqual(words)
  })
})
