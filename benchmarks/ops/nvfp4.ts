/**
 * The NVFP4 codec: signal-to-noise ratio of Gaussian values after one trip, as the Markdown table of docs/nvfp4.md, and
 * speed of one tensor f32[1024, 2560].
 *
 *   npx tsx benchmarks/ops/nvfp4.ts [threads]
 */
import { isaLevels } from '../../test/support/isa-levels'
import { ops, type OpOptions } from '../../test/support/native-ops'
import { gaussian } from '../../test/support/random'

const [rows, cols] = [1024, 2560]
const count = rows * cols
const codes = new Uint8Array(count / 2)
const scales = new Uint8Array(count / 16)
const back = new Float32Array(count)

interface Way {
  name: string
  twoLevel: boolean
  rounding: 'nearest' | 'stochastic'
  scaleRule: 'amax' | 'four-over-six' | 'amax-up'
}
const ways: Way[] = [
  { name: 'two-level, nearest, four-over-six', twoLevel: true, rounding: 'nearest', scaleRule: 'four-over-six' },
  { name: 'two-level, nearest, amax', twoLevel: true, rounding: 'nearest', scaleRule: 'amax' },
  { name: 'two-level, nearest, amax-up', twoLevel: true, rounding: 'nearest', scaleRule: 'amax-up' },
  { name: 'two-level, stochastic, amax', twoLevel: true, rounding: 'stochastic', scaleRule: 'amax' },
  { name: 'two-level, stochastic, amax-up', twoLevel: true, rounding: 'stochastic', scaleRule: 'amax-up' },
  { name: 'one-level, nearest, amax', twoLevel: false, rounding: 'nearest', scaleRule: 'amax' },
  { name: 'one-level, nearest, four-over-six', twoLevel: false, rounding: 'nearest', scaleRule: 'four-over-six' },
]

function signalToNoise(x: Float32Array, way: Way): number {
  const globalScale = way.twoLevel ? ops.twoLevelGlobalScale!(ops.amax!(x, rows, cols)) : 1
  const options = { globalScale, rounding: way.rounding, scaleRule: way.scaleRule, seed: 1 }
  ops.quantizeNvfp4!(codes, scales, x, rows, cols, options)
  ops.dequantizeNvfp4!(back, codes, scales, rows, cols, options)
  let signal = 0
  let noise = 0
  for (let i = 0; i < count; i++) {
    signal += x[i]! ** 2
    noise += (x[i]! - back[i]!) ** 2
  }
  return 10 * Math.log10(signal / noise)
}

function errors(): void {
  const sigmas = [1e-12, 1e-3, 5e-3, 0.02, 0.1, 1, 100]
  console.log(`| dB, σ = | ${sigmas.join(' | ')} |\n|---|${'---|'.repeat(sigmas.length)}`)
  const tensors = sigmas.map((sigma) => gaussian(count, sigma))
  for (const way of ways) {
    console.log(`| ${way.name} | ${tensors.map((x) => signalToNoise(x, way).toFixed(2)).join(' | ')} |`)
  }
}

/** Median of seven runs after one that warms up. */
function milliseconds(run: () => void): number {
  const times = Array.from({ length: 8 }, () => {
    const start = performance.now()
    run()
    return performance.now() - start
  })
  return times.slice(1).sort((a, b) => a - b)[3]!
}

function speed(threads: number): void {
  const x = gaussian(count, 0.02)
  const globalScale = ops.twoLevelGlobalScale!(ops.amax!(x, rows, cols))
  const report = (name: string, ms: number) =>
    console.log(`${name.padEnd(44)} ${ms.toFixed(2).padStart(8)} ms ${((count * 4) / ms / 1e6).toFixed(2)} GB/s of f32`)
  for (const isa of isaLevels) {
    const device: OpOptions = { isa, threads }
    for (const { name, rounding, scaleRule } of ways.filter((way) => way.twoLevel)) {
      const options = { ...device, globalScale, rounding, scaleRule }
      report(
        `${isa} ${name}`,
        milliseconds(() => ops.quantizeNvfp4!(codes, scales, x, rows, cols, options)),
      )
    }
    report(
      `${isa} dequantise`,
      milliseconds(() => ops.dequantizeNvfp4!(back, codes, scales, rows, cols, { ...device, globalScale })),
    )
  }
}

errors()
speed(Number(process.argv[2] ?? 1))
