/** Needs a CUDA device: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { expectClose, ops, seededValues } from '../support/native-ops'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

/** Around a vector of 8, around a block of 2048, and three tokens of Qwen3-4B. */
const COUNTS = [1, 7, 8, 9, 2047, 2048, 2049, 3 * 9728]
// One rounding to bf16: 2^-9 of the value. The derivative of silu passes through 0: its terms are of the size of dy · up.
const [ATOL, RTOL] = [1e-6, 2 ** -8]

function problem(count: number) {
  const gate = toBf16(seededValues(count, 1, 20))
  return { count, gate, up: toBf16(seededValues(count, 2, 2)), dy: toBf16(seededValues(count, 3)) }
}
type Problem = ReturnType<typeof problem>

function forward({ count, gate, up }: Problem) {
  const y = new Uint16Array(count).fill(0x7fff)
  ops.swigluCuda!(y, gate, up, count)
  return y
}

function backward({ count, gate, up, dy }: Problem) {
  const [dgate, dup] = [new Uint16Array(count).fill(0x7fff), new Uint16Array(count).fill(0x7fff)]
  ops.swigluBackwardCuda!(dgate, dup, dy, gate, up, count)
  return { dgate, dup }
}

withCuda(`SwiGLU on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each(COUNTS)('matches the CPU, %i elements', (count) => {
    const p = problem(count)
    const expected = new Float32Array(count)
    ops.swiglu!(expected, fromBf16(p.gate), fromBf16(p.up), count)
    expectClose(fromBf16(forward(p)), expected, 1e-12, RTOL)
  })

  it.each(COUNTS)('has the gradients of the CPU, %i elements', (count) => {
    const p = problem(count)
    const [dgate, dup] = [new Float32Array(count), new Float32Array(count)]
    ops.swigluBackward!(dgate, dup, fromBf16(p.dy), fromBf16(p.gate), fromBf16(p.up), count)
    const cuda = backward(p)
    expectClose(fromBf16(cuda.dgate), dgate, ATOL, RTOL)
    expectClose(fromBf16(cuda.dup), dup, 1e-12, RTOL)
  })

  it('has the limits of silu far from zero', () => {
    const gate = toBf16(Float32Array.of(-100, -1e30, 100, 1e30, 0, -0, -88, 88, NaN))
    const up = toBf16(new Float32Array(9).fill(1))
    const y = fromBf16(forward({ count: 9, gate, up, dy: up }))
    expectClose(y.subarray(0, 8), [0, 0, 100, fromBf16(gate)[3]!, 0, 0, 0, 88], 1e-30)
    expect(y[8]).toBeNaN()
    const { dgate } = backward({ count: 9, gate, up, dy: up })
    expectClose(fromBf16(dgate).subarray(0, 8), [0, 0, 1, 1, 0.5, 0.5, 0, 1], 1e-30)
  })

  it('writes over its inputs, and gives the same bytes twice', () => {
    for (const count of [9, 5000]) {
      const p = problem(count)
      const [y, gradients] = [forward(p), backward(p)]
      expect(forward(p)).toEqual(y)
      expect(backward(p)).toEqual(gradients)
      for (const side of ['gate', 'up'] as const) {
        const { gate, up } = problem(count)
        const over = side === 'gate' ? gate : up
        ops.swigluCuda!(over, gate, up, count)
        expect(over).toEqual(y)
      }
      ops.swigluBackwardCuda!(p.gate, p.up, p.dy, p.gate, p.up, count)
      expect({ dgate: p.gate, dup: p.up }).toEqual(gradients)
    }
  })
})
