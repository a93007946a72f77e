/** Needs a CUDA device: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { ops } from '../support/native-ops'
import { gaussian } from '../support/random'

const [rows, cols] = [97, 1040]

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

withCuda(`NVFP4 on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  const x = gaussian(rows * cols, 0.02)
  x.fill(0, 64, 80)
  x.set([1e-30, -1e-20, -0, 5], 96)
  const globalScale = ops.twoLevelGlobalScale!(ops.amax!(x, rows, cols)) as number

  const run = (quantize: (...args: unknown[]) => void, options: object, values: Float32Array | Uint16Array = x) => {
    const codes = new Uint8Array(x.length / 2)
    const scales = new Uint8Array(x.length / 16)
    quantize(codes, scales, values, rows, cols, options)
    return { codes, scales }
  }
  const expectSameBytes = (options: object, values: Float32Array | Uint16Array) => {
    const wide = values instanceof Uint16Array ? fromBf16(values) : values
    const cpu = run(ops.quantizeNvfp4!, { isa: 'portable', ...options }, wide)
    const cuda = run(ops.quantizeNvfp4Cuda!, options, values)
    expect(Buffer.compare(cuda.codes, cpu.codes)).toBe(0)
    expect(Buffer.compare(cuda.scales, cpu.scales)).toBe(0)
  }

  it.each(['nearest', 'stochastic'])('gives the bytes of the CPU, %s rounding', (rounding) => {
    for (const scaleRule of ['amax', 'four-over-six', 'amax-up']) {
      for (const scale of [globalScale, globalScale / 3, 1]) {
        const options = { globalScale: scale, rounding, scaleRule, seed: 2n ** 40n + 3n, firstRow: 5 }
        expectSameBytes(options, x)
        expectSameBytes(options, toBf16(x))
      }
    }
  })

  it('rounds ties to the even code under every scale, and keeps the signs of zeros', () => {
    // Blocks of multiples of the scale that their largest value makes, 6 · scale: every midpoint and its neighbours.
    const ties = new Float32Array(rows * cols)
    const midpoints = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 0, 0.5, 1, 2, 4]
    for (let i = 0; i < ties.length; i++) {
      const block = Math.floor(i / 16)
      const scale = (1 + (block % 8) / 8) * 2 ** ((Math.floor(block / 8) % 18) - 9)
      const step = 1 + (Math.floor(block / 144) % 3 === 0 ? 0 : ((block % 2) * 2 - 1) * 2 ** -22)
      const value = i % 16 === 15 ? 6 : midpoints[i % 12]! * step
      ties[i] = value * scale * (i % 5 === 0 ? -1 : 1)
    }
    for (const globalScale of [1, 2 ** -20, 0.3]) {
      expectSameBytes({ globalScale }, ties)
      expectSameBytes({ globalScale }, toBf16(ties))
    }
  })

  it('gives the bytes of the CPU for huge and tiny values', () => {
    const extreme = x.map((value, i) => value * [1e38, 1e-38, 1e30, 1e-44, 1][i % 5]!)
    for (const globalScale of [1, 2 ** -100, 2 ** 100, 2 ** -126]) {
      expectSameBytes({ globalScale }, extreme)
      expectSameBytes({ globalScale }, toBf16(extreme))
    }
  })

  it('finds the largest magnitude', () => {
    for (const [T, K] of [
      [1, 16],
      [3, 48],
      [rows, cols],
    ] as const) {
      const part = x.slice(0, T * K)
      part[T * K - 3] = -7.25
      expect(ops.amaxCuda!(part, T, K)).toBe(7.25)
      expect(ops.amaxCuda!(toBf16(part), T, K)).toBe(7.25)
    }
    expect(ops.amaxCuda!(new Float32Array(32), 2, 16)).toBe(0)
  })

  it('decodes rows of any width to f32 and to bf16 as the CPU does', () => {
    for (const [N, K] of [
      [1, 16],
      [33, 48],
      [7, 256],
      [70, 272],
      [9, 1040],
    ] as const) {
      const part = run(ops.quantizeNvfp4!, { globalScale })
      const [cpu, cuda, bf16] = [new Float32Array(N * K), new Float32Array(N * K), new Uint16Array(N * K)]
      const codes = part.codes.subarray(0, cpu.length / 2)
      const scales = part.scales.subarray(0, cpu.length / 16)
      for (const scale of [1, 0.3]) {
        ops.dequantizeNvfp4!(cpu, codes, scales, N, K, { globalScale: scale, isa: 'portable' })
        ops.dequantizeNvfp4Cuda!(cuda, codes, scales, N, K, { globalScale: scale })
        ops.dequantizeNvfp4Cuda!(bf16, codes, scales, N, K, { globalScale: scale })
        expect(cuda).toEqual(cpu)
        expect(bf16).toEqual(toBf16(cpu))
      }
    }
  })

  it('decodes every code under every scale as the CPU does, to f32 and to bf16', () => {
    const scales = Uint8Array.from({ length: 256 }, (_, i) => i)
    const codes = Uint8Array.from({ length: 256 * 8 }, (_, i) => (2 * (i % 8)) | ((2 * (i % 8) + 1) << 4))
    const [cpu, cuda, bf16] = [new Float32Array(4096), new Float32Array(4096), new Uint16Array(4096)]
    const options = { globalScale: 2 ** -11, isa: 'portable' }
    ops.dequantizeNvfp4!(cpu, codes, scales, 256, 16, options)
    ops.dequantizeNvfp4Cuda!(cuda, codes, scales, 256, 16, options)
    ops.dequantizeNvfp4Cuda!(bf16, codes, scales, 256, 16, options)
    expect(cuda).toEqual(cpu)
    expect(Float32Array.from(new Float32Array(Uint32Array.from(bf16, (bits) => bits << 16).buffer))).toEqual(cpu)
  })

  it('names the place of the first value that is not finite', () => {
    const bad = x.slice()
    bad[3 * cols + 7] = NaN
    bad[5 * cols] = Infinity
    for (const values of [bad, toBf16(bad)]) {
      expect(() => run(ops.quantizeNvfp4Cuda!, {}, values)).toThrow('row 3, column 7')
      expect(() => run(ops.quantizeNvfp4Cuda!, { rounding: 'stochastic' }, values)).toThrow('row 3, column 7')
      expect(() => ops.amaxCuda!(values, rows, cols)).toThrow('row 3, column 7')
    }
  })
})
