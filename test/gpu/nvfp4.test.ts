/** Needs a CUDA device: `npm run test:gpu`. */
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

  const run = (quantize: (...args: unknown[]) => void, options: object) => {
    const codes = new Uint8Array(x.length / 2)
    const scales = new Uint8Array(x.length / 16)
    quantize(codes, scales, x, rows, cols, options)
    return { codes, scales }
  }

  it.each(['nearest', 'stochastic'])('gives the bytes of the CPU, %s rounding', (rounding) => {
    for (const scaleRule of ['amax', 'four-over-six', 'amax-up']) {
      for (const scale of [globalScale, globalScale / 3, 1]) {
        const options = { globalScale: scale, rounding, scaleRule, seed: 2n ** 40n + 3n, firstRow: 5, isa: 'portable' }
        const cpu = run(ops.quantizeNvfp4!, options)
        const cuda = run(ops.quantizeNvfp4Cuda!, options)
        expect(Buffer.compare(cuda.codes, cpu.codes)).toBe(0)
        expect(Buffer.compare(cuda.scales, cpu.scales)).toBe(0)
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
    const refused = () =>
      ops.quantizeNvfp4Cuda!(new Uint8Array(bad.length / 2), new Uint8Array(bad.length / 16), bad, rows, cols, {})
    expect(refused).toThrow('row 3, column 7')
  })
})
