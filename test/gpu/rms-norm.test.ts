/** Needs a CUDA device: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { expectClose, expectSameBytes, ops, seededValues } from '../support/native-ops'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

const EPS = 1e-6
/** H on both sides of every kernel's row (128, 1024, 4096, 16384) and of Qwen3-4B; T around the rows of a block. */
const SHAPES: [T: number, H: number][] = [
  [1, 8],
  [3, 24],
  [15, 128],
  [17, 128],
  [33, 136],
  [9, 1024],
  [2, 1032],
  [1, 2560],
  [40, 2560],
  [3, 4096],
  [2, 4104],
  [2, 16384],
]
/** Several rows a run, several runs and a last run that is short. */
const MANY_ROWS: [T: number, H: number][] = [
  [20011, 128],
  [5003, 512],
  [1100, 2560],
]

// One rounding to bf16: 2^-9 of the value; f32 sums are far below that.
const RTOL = 2 ** -8

function problem(T: number, H: number) {
  const x = toBf16(seededValues(T * H, 1, 3))
  return { T, H, x, w: seededValues(H, 2), dy: toBf16(seededValues(T * H, 3)) }
}
type Problem = ReturnType<typeof problem>

function forward({ T, H, x, w }: Problem) {
  const y = new Uint16Array(T * H).fill(0x7fff)
  const invRms = new Float32Array(T).fill(NaN)
  ops.rmsNormCuda!(y, invRms, x, w, T, H, EPS)
  return { y, invRms }
}

function forwardCpu({ T, H, x, w }: Problem) {
  const y = new Float32Array(T * H)
  const invRms = new Float32Array(T)
  ops.rmsNorm!(y, invRms, fromBf16(x), w, T, H, EPS)
  return { y, invRms }
}

function backward({ T, H, x, w, dy }: Problem, accumulate: boolean) {
  const dx = accumulate ? toBf16(seededValues(T * H, 4)) : new Uint16Array(T * H).fill(0x7fff)
  const dw = seededValues(H, 5)
  ops.rmsNormBackwardCuda!(dx, dw, dy, x, w, forward({ T, H, x, w, dy }).invRms, T, H, accumulate)
  return { dx, dw }
}

/** Without what dx and dw held before. */
function backwardCpu(p: Problem) {
  const dx = new Float32Array(p.T * p.H)
  const dw = new Float32Array(p.H)
  ops.rmsNormBackward!(dx, dw, fromBf16(p.dy), fromBf16(p.x), p.w, forwardCpu(p).invRms, p.T, p.H)
  return { dx, dw }
}

withCuda(`RMSNorm on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each([...SHAPES, ...MANY_ROWS])('matches the CPU for T = %i, H = %i', (T, H) => {
    const p = problem(T, H)
    const [cuda, cpu] = [forward(p), forwardCpu(p)]
    expectClose(fromBf16(cuda.y), cpu.y, 1e-30, RTOL)
    expectClose(cuda.invRms, cpu.invRms, 0, 2e-6)
  })

  it('writes in place, needs no inverse, and scales zeros to zeros', () => {
    const p = problem(5, 256)
    p.x.fill(0, 256, 512)
    const expected = forward(p).y
    expect(expected.subarray(256, 512).every((bits) => (bits & 0x7fff) === 0)).toBe(true)
    ops.rmsNormCuda!(p.x, null, p.x, p.w, 5, 256, EPS)
    expectSameBytes(p.x, expected)
  })

  it.each([...SHAPES, ...MANY_ROWS])('has the gradients of the CPU for T = %i, H = %i', (T, H) => {
    const p = problem(T, H)
    const [cuda, cpu] = [backward(p, false), backwardCpu(p)]
    // dx is a difference of terms near 1 that f32 rounds.
    expectClose(fromBf16(cuda.dx), cpu.dx, 1e-5, RTOL)
    const before = seededValues(H, 5)
    // T terms of at most 2, summed in f32.
    expectClose(
      cuda.dw,
      cpu.dw.map((v, h) => v + before[h]!),
      1e-5 * Math.sqrt(T),
      1e-5,
    )
  })

  it.each([
    [7, 128],
    [40, 2560],
  ])('adds to dx when asked, T = %i, H = %i', (T, H) => {
    const p = problem(T, H)
    const before = fromBf16(toBf16(seededValues(T * H, 4)))
    const expected = backwardCpu(p).dx.map((v, i) => v + before[i]!)
    expectClose(fromBf16(backward(p, true).dx), expected, 1e-5, RTOL)
  })

  it('writes dx over dy, and needs no weight gradient', () => {
    const p = problem(50, 128)
    const expected = backward(p, false).dx
    const { invRms } = forward(p)
    ops.rmsNormBackwardCuda!(p.dy, null, p.dy, p.x, p.w, invRms, 50, 128, false)
    expectSameBytes(p.dy, expected)
  })

  it('gives the same bytes twice', () => {
    for (const [T, H] of [...MANY_ROWS, [9, 2560] as const]) {
      const p = problem(T, H)
      expectSameBytes(backward(p, true), backward(p, true))
    }
  })

  it('does nothing for no rows and refuses rows that it cannot read', () => {
    const none = new Uint16Array(0)
    ops.rmsNormCuda!(none, null, none, new Float32Array(8), 0, 8, EPS)
    const of = (H: number) => () =>
      ops.rmsNormCuda!(new Uint16Array(H), null, new Uint16Array(H), new Float32Array(H), 1, H, EPS)
    expect(of(12)).toThrow('a multiple of 8 columns')
    expect(of(16392)).toThrow('up to 16384, not 16392')
  })
})
