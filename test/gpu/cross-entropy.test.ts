/** Needs a CUDA device: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { expectClose, ops, seededValues } from '../support/native-ops'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

const IGNORED = -100

/** Vocabularies with and without rows of whole vectors; chunks shorter and longer than a block's turn, and a short last. */
const SHAPES: [T: number, V: number, chunk: number][] = [
  [1, 1, 1],
  [3, 7, 7],
  [5, 100, 33],
  [9, 4096, 4096],
  [4, 4104, 4104],
  [6, 5000, 1024],
  [3, 33000, 16504],
  [2, 151936, 151936],
  [130, 1000, 400],
]

interface Problem {
  T: number
  V: number
  logits: Uint16Array
  labels: Int32Array
}

function problem(T: number, V: number, seed = 1, scale = 15): Problem {
  const labels = Int32Array.from(seededValues(T, seed + 1), (v) => Math.floor(((v + 1) / 2) * V))
  for (let t = 2; t < T; t += 4) labels[t] = IGNORED
  return { T, V, logits: toBf16(seededValues(T * V, seed, scale)), labels }
}

/** Calls use(columns [begin, begin + count) of every row, count, begin) for each chunk in turn. */
function eachChunk(
  { T, V, logits }: Problem,
  chunk: number,
  use: (part: Uint16Array, count: number, begin: number) => void,
) {
  for (let begin = 0; begin < V; begin += chunk) {
    const count = Math.min(chunk, V - begin)
    const part = new Uint16Array(T * count)
    for (let t = 0; t < T; t++) part.set(logits.subarray(t * V + begin, t * V + begin + count), t * count)
    use(part, count, begin)
  }
}

function loss(p: Problem, chunk: number) {
  const [max, sum] = [new Float32Array(p.T).fill(-Infinity), new Float32Array(p.T)]
  const target = new Float32Array(p.T).fill(-7)
  eachChunk(p, chunk, (part, count, begin) => {
    ops.crossEntropyAccumulateCuda!(max, sum, target, part, p.labels, p.T, count, begin)
  })
  ops.crossEntropyFinishCuda!(max, max, sum, p.T) // lse may alias max
  return { lse: max, target }
}

function lossCpu(p: Problem) {
  const [max, sum] = [new Float32Array(p.T).fill(-Infinity), new Float32Array(p.T)]
  const target = new Float32Array(p.T).fill(-7)
  ops.crossEntropyAccumulate!(max, sum, target, fromBf16(p.logits), p.labels, p.T, p.V, 0)
  ops.crossEntropyFinish!(max, max, sum, p.T)
  return { lse: max, target }
}

const weights = (T: number) => Float32Array.from({ length: T }, (_, t) => 0.5 + t / 7)

function gradient(p: Problem, chunk: number, lse: Float32Array) {
  const out = new Uint16Array(p.T * p.V)
  eachChunk(p, chunk, (part, count, begin) => {
    ops.crossEntropyGradientCuda!(part, lse, p.labels, weights(p.T), p.T, count, begin)
    for (let t = 0; t < p.T; t++) out.set(part.subarray(t * count, (t + 1) * count), t * p.V + begin)
  })
  return out
}

function gradientCpu(p: Problem, lse: Float32Array) {
  const out = fromBf16(p.logits)
  ops.crossEntropyGradient!(out, lse, p.labels, weights(p.T), p.T, p.V, 0)
  return out
}

withCuda(`cross-entropy on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each(SHAPES)('matches the CPU for T = %i, V = %i in chunks of %i', (T, V, chunk) => {
    const p = problem(T, V)
    const [cuda, cpu] = [loss(p, chunk), lossCpu(p)]
    // Sums of exponentials in f32: a few 2^-22 of the sum, and the last bit of an lse of up to 30.
    expectClose(cuda.lse, cpu.lse, 1e-5)
    expect(cuda.target).toEqual(cpu.target)
  })

  it.each(SHAPES)('has the gradient of the CPU for T = %i, V = %i in chunks of %i', (T, V, chunk) => {
    const p = problem(T, V)
    const { lse } = lossCpu(p)
    // bf16 rounds once; exponentials are good to 1e-5 of themselves. Below f32's normal numbers they become 0.
    expectClose(fromBf16(gradient(p, chunk, lse)), gradientCpu(p, lse), 1e-37, 2 ** -8)
  })

  it('keeps the digits of a label that is almost certain', () => {
    const p = problem(1, 16)
    p.logits.set(toBf16(Float32Array.of(16, ...new Array<number>(15).fill(0))))
    p.labels[0] = 0
    const { lse } = lossCpu(p)
    const expected = gradientCpu(p, lse)
    expect(expected[0]).toBeLessThan(0)
    expectClose(fromBf16(gradient(p, 16, lse)), expected, 0, 2 ** -8)
  })

  it('writes zeros for an ignored label, whatever the logits', () => {
    for (const V of [64, 67]) {
      const p = problem(3, V)
      p.logits.fill(0x7fc0, 2 * V)
      const out = gradient(p, V, lossCpu(p).lse)
      expect(out.subarray(2 * V).every((bits) => bits === 0)).toBe(true)
      expect(out.subarray(0, V).some((bits) => bits !== 0)).toBe(true)
    }
  })

  it('takes logits of minus infinity, whole chunks of them too, and lets a NaN reach its own row only', () => {
    const p = problem(3, 64)
    p.logits.fill(0xff80, 0, 32)
    p.labels.set([40, 5, 6])
    expectClose(loss(p, 16).lse, lossCpu(p).lse, 1e-5)
    p.logits[64 + 9] = 0x7fc0
    const { lse } = loss(p, 16)
    expect([...lse].map(Number.isNaN)).toEqual([false, true, false])
  })

  it('gives the same bytes twice', () => {
    const p = problem(37, 9000)
    const { lse } = loss(p, 4096)
    expect(loss(p, 4096).lse).toEqual(lse)
    expect(gradient(p, 4096, lse)).toEqual(gradient(p, 4096, lse))
  })

  it('does nothing for no rows', () => {
    expect(loss({ ...problem(1, 8), T: 0, labels: new Int32Array(0), logits: new Uint16Array(0) }, 8).lse).toHaveLength(
      0,
    )
  })
})
