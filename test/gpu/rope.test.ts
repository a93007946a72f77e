/** Needs a CUDA device: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { expectClose, ops, seededValues } from '../support/native-ops'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

const BASE = 1e6
const EPS = 1e-6

function tables(op: string, positions: number[], D: number, base = BASE) {
  const size = (positions.length * D) / 2
  const [cosines, sines] = [new Float32Array(size).fill(NaN), new Float32Array(size).fill(NaN)]
  ops[op]!(cosines, sines, Int32Array.from(positions), positions.length, D, base)
  return { cosines, sines }
}

const counted = (T: number, offset = 0) => Array.from({ length: T }, (_, t) => t + offset)

const SHAPES: [T: number, heads: number, D: number][] = [
  [1, 1, 16],
  [3, 5, 32],
  [7, 3, 48],
  [2, 2, 64],
  [33, 32, 128],
  [31, 8, 128],
  [5, 3, 256],
]

withCuda(`rotary embedding on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each([
    [[0], 16, 1e4],
    [[5, 0, 131071, 1_000_000, 2 ** 30], 128, 1e6],
    [counted(100, 32700), 256, 5e6],
    [counted(9), 130, 1e4],
  ])('makes the table of the CPU, positions %j, D = %i, base %d', (positions, D, base) => {
    const [cuda, cpu] = [tables('ropeTableCuda', positions, D, base), tables('ropeTable', positions, D, base)]
    // Both evaluate in double; a last bit of it may move one rounding to f32.
    expectClose(cuda.cosines, cpu.cosines, 0, 2 ** -23)
    expectClose(cuda.sines, cpu.sines, 0, 2 ** -23)
  })

  it.each(SHAPES)('gives the bytes of the CPU, T = %i, heads = %i, D = %i, forwards and back', (T, heads, D) => {
    const { cosines, sines } = tables('ropeTable', counted(T, 1000), D)
    for (const inverse of [false, true]) {
      const cuda = toBf16(seededValues(T * heads * D, 1, 2))
      const cpu = fromBf16(cuda)
      ops.ropeCuda!(cuda, cosines, sines, T, heads, D, inverse)
      ops.rope!(cpu, cosines, sines, T, heads, D, inverse)
      expect(cuda).toEqual(toBf16(cpu))
    }
  })

  it('refuses a head that it cannot read', () => {
    expect(() => ops.ropeCuda!(new Uint16Array(24), new Float32Array(12), new Float32Array(12), 1, 1, 24)).toThrow(
      'a multiple of 16 columns',
    )
  })
})

function heads(T: number, Q: number, KV: number, D: number) {
  return {
    q: toBf16(seededValues(T * Q * D, 1, 3)),
    k: toBf16(seededValues(T * KV * D, 2, 0.1)),
    qW: seededValues(D, 3).map((v) => v + 1.5),
    kW: seededValues(D, 4).map((v) => v + 1.5),
    ...tables('ropeTable', counted(T, 77), D),
  }
}

function fused(
  { q, k, qW, kW, cosines, sines }: ReturnType<typeof heads>,
  T: number,
  Q: number,
  KV: number,
  D: number,
) {
  const [qInvRms, kInvRms] = [new Float32Array(T * Q).fill(NaN), new Float32Array(T * KV).fill(NaN)]
  const [qOut, kOut] = [new Uint16Array(q.length).fill(0x7fff), new Uint16Array(k.length).fill(0x7fff)]
  ops.qkNormRopeCuda!(qOut, kOut, qInvRms, kInvRms, q, k, qW, kW, cosines, sines, T, Q, KV, D, EPS)
  return { q: qOut, k: kOut, qInvRms, kInvRms }
}

/** Norm and rotation of `count` heads one after the other in f32. */
function onCpu(raw: Uint16Array, w: Float32Array, table: { cosines: Float32Array; sines: Float32Array }, T: number) {
  const count = raw.length / T / w.length
  const y = new Float32Array(raw.length)
  const invRms = new Float32Array(T * count)
  ops.rmsNorm!(y, invRms, fromBf16(raw), w, T * count, w.length, EPS)
  ops.rope!(y, table.cosines, table.sines, T, count, w.length, false)
  return { y, invRms }
}

withCuda(`norm and rotation of heads in one on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each([
    [1, 1, 1, 16],
    [3, 4, 2, 64],
    [5, 3, 1, 48],
    [33, 32, 8, 128],
    [1, 32, 8, 128],
    [7, 2, 2, 256],
    [2, 3, 1, 144],
  ])('matches norm, then rotation, on the CPU, T = %i, Q = %i, KV = %i, D = %i', (T, Q, KV, D) => {
    const inputs = heads(T, Q, KV, D)
    const cuda = fused(inputs, T, Q, KV, D)
    const [q, k] = [onCpu(inputs.q, inputs.qW, inputs, T), onCpu(inputs.k, inputs.kW, inputs, T)]
    // bf16 rounds once; the rotation's difference of terms up to 4 keeps f32's last bits.
    expectClose(fromBf16(cuda.q), q.y, 4e-6, 2 ** -8)
    expectClose(fromBf16(cuda.k), k.y, 4e-6, 2 ** -8)
    expectClose(cuda.qInvRms, q.invRms, 0, 2e-6)
    expectClose(cuda.kInvRms, k.invRms, 0, 2e-6)
  })

  it('writes in place, keeps no inverse when none is asked, and gives the same bytes twice', () => {
    const [T, Q, KV, D] = [9, 8, 2, 128]
    const { q, k, qW, kW, cosines, sines } = heads(T, Q, KV, D)
    const first = fused({ q, k, qW, kW, cosines, sines }, T, Q, KV, D)
    expect(fused({ q, k, qW, kW, cosines, sines }, T, Q, KV, D)).toEqual(first)
    ops.qkNormRopeCuda!(q, k, null, null, q, k, qW, kW, cosines, sines, T, Q, KV, D, EPS)
    expect(q).toEqual(first.q)
    expect(k).toEqual(first.k)
  })

  it('refuses heads that it cannot read', () => {
    expect(() => fused(heads(1, 1, 1, 24), 1, 1, 1, 24)).toThrow('a multiple of 16 columns up to 256')
    expect(() => fused(heads(1, 1, 1, 272), 1, 1, 1, 272)).toThrow('up to 256, not 272')
  })
})
