/** Needs a CUDA device: `npm run test:gpu`. */
import { attentionInputs, type PackedDims, pagesOf, startsOf } from '../support/attention-ops'
import type { AttentionDims } from '../support/attention-reference'
import { fromBf16, toBf16 } from '../support/bf16'
import { expectClose, expectSameBytes, ops, seededValues } from '../support/native-ops'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

// A result rounds to bf16 once (2^-9 of itself) after f32 sums. What enters those sums has rounded to bf16 too, by up to
// 2^-9 each: probabilities, their gradients and, through Σ dy·y, y. Together that stays below 2^-7 of a tensor's largest
// value. 1e-5 is for gradients that are 0 but for the last bits of f32 (T 1).
const RTOL = 2 ** -8
const largest = (values: Float32Array) => values.reduce((most, x) => Math.max(most, Math.abs(x)), 0)
const expectBf16Close = (actual: Uint16Array, expected: Float32Array) =>
  expectClose(fromBf16(actual), expected, largest(expected) * 2 ** -7 + 1e-5, RTOL)

const nan = (length: number) => new Uint16Array(length).fill(0x7fff)
const cpu = { threads: 16 }

const dims = (B: number, T: number, Q: number, KV: number, D: number): AttentionDims => ({ B, T, Q, KV, D })
const HEADS = [
  [2, 2],
  [4, 2],
  [8, 2],
] as const
const SHAPES = [16, 64, 128].flatMap((D) =>
  HEADS.flatMap(([Q, KV]) => [1, 7, 63, 64, 65, 130].map((T) => dims(1, T, Q, KV, D))),
)

const MASKS: Record<string, (t: number, b: number, T: number) => boolean> = {
  'padding on the left': (t, b, T) => t >= b + Math.floor(T / 3),
  'padding on the right': (t, _, T) => t < Math.ceil(T / 2),
  holes: (t, b) => (t * 7 + b) % 3 !== 0,
}
const maskOf = ({ B, T }: AttentionDims, visible: (t: number, b: number, T: number) => boolean) =>
  Uint8Array.from({ length: B * T }, (_, i) => (visible(i % T, Math.floor(i / T), T) ? 1 : 0))

function inputsOf(shape: AttentionDims) {
  const { q, k, v } = attentionInputs(shape)
  return { q: toBf16(q), k: toBf16(k), v: toBf16(v), dy: toBf16(seededValues(q.length, 9)) }
}
type Inputs = ReturnType<typeof inputsOf>

function forward({ q, k, v }: Inputs, mask: Uint8Array | null, shape: PackedDims) {
  const y = nan(q.length)
  const lse = new Float32Array(q.length / shape.D).fill(NaN)
  ops.attentionCuda!(y, lse, q, k, v, mask, shape)
  return { y, lse }
}

function backward(inputs: Inputs, mask: Uint8Array | null, shape: PackedDims) {
  const { y, lse } = forward(inputs, mask, shape)
  const { q, k, v, dy } = inputs
  const [dq, dk, dv] = [nan(q.length), nan(k.length), nan(v.length)]
  ops.attentionBackwardCuda!(dq, dk, dv, dy, y, lse, q, k, v, mask, shape)
  return { y, lse, dq, dk, dv }
}

/** The CPU op on the same values. The gradients start from its own y and lse. */
function truth(inputs: Inputs, mask: Uint8Array | null, shape: PackedDims) {
  const [q, k, v, dy] = [inputs.q, inputs.k, inputs.v, inputs.dy].map(fromBf16) as [
    Float32Array,
    Float32Array,
    Float32Array,
    Float32Array,
  ]
  const y = new Float32Array(q.length)
  const lse = new Float32Array(q.length / shape.D)
  ops.attention!(y, lse, q, k, v, mask, shape, cpu)
  const [dq, dk, dv] = [new Float32Array(q.length), new Float32Array(k.length), new Float32Array(v.length)]
  ops.attentionBackward!(dq, dk, dv, dy, y, lse, q, k, v, mask, shape, cpu)
  return { y, lse, dq, dk, dv }
}

function expectTruth(inputs: Inputs, mask: Uint8Array | null, shape: PackedDims) {
  const actual = backward(inputs, mask, shape)
  const expected = truth(inputs, mask, shape)
  for (const name of ['y', 'dq', 'dk', 'dv'] as const) expectBf16Close(actual[name], expected[name])
  expected.lse.forEach((value, i) => {
    // f32 on both sides; 2^x of the special function unit errs by 2 units in the last place.
    if (value === -Infinity) expect(actual.lse[i]).toBe(-Infinity)
    else expectClose([actual.lse[i]!], [value], 2e-5, 2e-5)
  })
}

withCuda(`attention on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  test.each(SHAPES)('has the results and gradients of the CPU at T $T Q $Q KV $KV D $D', (shape) => {
    expectTruth(inputsOf(shape), null, shape)
  })

  test.each([dims(3, 100, 4, 2, 128), dims(2, 129, 8, 2, 64), dims(2, 33, 6, 2, 80), dims(1, 40, 2, 1, 256)])(
    'has those of the CPU with masks, B $B T $T D $D',
    (shape) => {
      for (const visible of Object.values(MASKS)) expectTruth(inputsOf(shape), maskOf(shape, visible), shape)
    },
  )

  // Within a tile of 16, 32 or 64, on their borders, over several of them, and one token each.
  test.each([[5, 27, 32, 1, 64, 1], [130, 3, 200], [64, 64, 128], Array<number>(70).fill(1), [1, 300], [4300, 40]])(
    'has those of the CPU in segments of %i, %i, ... tokens',
    (...lengths) => {
      const T = lengths.reduce((sum, length) => sum + length)
      for (const D of T > 1000 ? [64] : [64, 128, 24]) {
        const shape = { ...dims(T > 1000 ? 1 : 2, T, 4, 2, D) }
        const packed = { ...shape, starts: startsOf(shape.B, lengths) }
        const inputs = inputsOf(shape)
        expectTruth(inputs, null, packed)
        expectTruth(inputs, maskOf(shape, MASKS['holes']!), packed)
        expectSameBytes(backward(inputs, null, packed), backward(inputs, null, packed))
      }
    },
  )

  test.each([64, 128, 24])('gives one segment a sequence the bytes of none, D %d', (D) => {
    const shape = dims(2, 130, 4, 2, D)
    const inputs = inputsOf(shape)
    expectSameBytes(backward(inputs, null, { ...shape, starts: startsOf(2, [130]) }), backward(inputs, null, shape))
  })

  test.each([64, 128, 24])('gives zeros, an lse of −∞ and zero gradients where every key is hidden, D %d', (D) => {
    const shape = dims(2, 70, 4, 2, D)
    const { lse, ...results } = backward(
      inputsOf(shape),
      maskOf(shape, (_, b) => b === 1),
      shape,
    )
    expect(lse.subarray(0, lse.length / 2).every((x) => x === -Infinity)).toBe(true)
    for (const values of Object.values(results).map(fromBf16)) {
      expect(values.subarray(0, values.length / 2).every((x) => x === 0)).toBe(true)
      expect(values.every(Number.isFinite)).toBe(true)
      expect(values.some((x) => x !== 0)).toBe(true)
    }
  })

  test.each([64, 128, 24])(
    'reads nothing of a hidden key, not even a NaN, and no NaN of a visible one is lost, D %d',
    (D) => {
      const shape = dims(1, 40, 2, 1, D)
      const inputs = inputsOf(shape)
      const hidden = maskOf(shape, (t) => t !== 11)
      const clean = backward(inputs, hidden, shape)
      inputs.k.fill(0x7fff, 11 * D, 12 * D)
      inputs.v.fill(0x7fff, 11 * D, 12 * D)
      expectSameBytes(backward(inputs, hidden, shape), clean)
      const y = fromBf16(forward(inputs, null, shape).y)
      expect(y.subarray(11 * 2 * D).every(Number.isNaN)).toBe(true)
    },
  )

  test('gives the same bytes twice', () => {
    for (const D of [64, 128, 80]) {
      const shape = dims(2, 300, 8, 2, D)
      const inputs = inputsOf(shape)
      expectSameBytes(backward(inputs, null, shape), backward(inputs, null, shape))
    }
  })

  test('refuses a head dim past 256', () => {
    const shape = dims(1, 1, 1, 1, 257)
    expect(() => forward(inputsOf(shape), null, shape)).toThrow('Expected a head dim of 1 to 256 on CUDA')
  })
})

interface DecodeDims {
  T: number
  offset: number
  Q: number
  KV: number
  D: number
  pageTokens: number
}

function decodeInputs({ T, offset, Q, KV, D, pageTokens }: DecodeDims) {
  const context = offset + T
  const [k, v] = [2, 1].map((scale) =>
    pagesOf(seededValues(context * KV * D, 1 + scale, scale), context, KV, D, pageTokens, 'bf16'),
  )
  return { q: toBf16(seededValues(T * Q * D, 1, 2)), k: k!, v: v! }
}

function decode({ q, k, v }: ReturnType<typeof decodeInputs>, shape: DecodeDims & { position?: number }) {
  const y = nan(q.length)
  ops.attentionDecodeCuda!(y, q, k, v, shape)
  return y
}

function paged({ q, k, v }: ReturnType<typeof decodeInputs>, shape: DecodeDims) {
  const y = nan(q.length)
  ops.attentionPagedCuda!(y, q, k, v, shape)
  return y
}

function expectPaged(shape: DecodeDims) {
  const inputs = decodeInputs(shape)
  const expected = new Float32Array(inputs.q.length)
  ops.attentionCached!(expected, fromBf16(inputs.q), inputs.k, inputs.v, { ...shape, dtype: 'bf16' }, cpu)
  expectBf16Close(paged(inputs, shape), expected)
}

withCuda('attention over a cache on CUDA', () => {
  test.each(
    [16, 64, 128].flatMap((D) =>
      HEADS.flatMap(([Q, KV]) =>
        [
          [1, 0, 64],
          [1, 127, 64],
          [1, 128, 16],
          [7, 121, 64],
          [8, 700, 10],
          [1, 2100, 256],
        ].map(([T, offset, pageTokens]) => ({ T: T!, offset: offset!, pageTokens: pageTokens!, Q, KV, D })),
      ),
    ),
  )('equals the CPU at T $T offset $offset Q $Q KV $KV D $D in pages of $pageTokens', (shape) => {
    const inputs = decodeInputs(shape)
    const expected = new Float32Array(inputs.q.length)
    ops.attentionCached!(expected, fromBf16(inputs.q), inputs.k, inputs.v, { ...shape, dtype: 'bf16' }, cpu)
    expectBf16Close(decode(inputs, shape), expected)
  })

  test.each([64, 128, 48])('gives the same bytes twice, and with its position on the device, D %d', (D) => {
    const shape = { T: 2, offset: 1000, Q: 8, KV: 2, D, pageTokens: 64 }
    const inputs = decodeInputs(shape)
    const once = decode(inputs, shape)
    expectSameBytes(decode(inputs, shape), once)
    expectSameBytes(decode(inputs, { ...shape, offset: 3000, position: 1000 }), once)
  })

  // Groups of 1, 3 and 4 heads, so that tiles of rows begin and end inside a token's heads.
  test.each(
    [24, 64, 128].flatMap((D) =>
      [
        [2, 2],
        [6, 2],
        [4, 1],
      ].flatMap(([Q, KV]) =>
        [1, 9, 63, 64, 65, 200].flatMap((T) =>
          [0, 1, 63, 64, 100].map((offset) => ({ T, offset, pageTokens: 64, Q: Q!, KV: KV!, D })),
        ),
      ),
    ),
  )('of any number of tokens equals the CPU, T $T offset $offset Q $Q KV $KV D $D', expectPaged)

  // Splits of the keys, pages of two tiles, and pages that no tile fits.
  test.each([
    { T: 9, offset: 3000, pageTokens: 64, Q: 8, KV: 2, D: 128 },
    { T: 40, offset: 1111, pageTokens: 128, Q: 4, KV: 2, D: 64 },
    { T: 300, offset: 700, pageTokens: 64, Q: 32, KV: 8, D: 128 },
    { T: 33, offset: 100, pageTokens: 10, Q: 4, KV: 2, D: 64 },
    { T: 5, offset: 70, pageTokens: 64, Q: 2, KV: 1, D: 256 },
  ])('of any number of tokens equals the CPU, T $T offset $offset D $D in pages of $pageTokens', expectPaged)

  test('of any number of tokens gives the same bytes twice', () => {
    const shape = { T: 70, offset: 900, Q: 8, KV: 2, D: 128, pageTokens: 64 }
    const inputs = decodeInputs(shape)
    expectSameBytes(paged(inputs, shape), paged(inputs, shape))
  })

  test('refuses more tokens than it has rows for', () => {
    const shape = { T: 9, offset: 0, Q: 2, KV: 1, D: 64, pageTokens: 64 }
    expect(() => decode(decodeInputs(shape), shape)).toThrow('Expected up to 8 tokens at an offset of 0 or more')
  })
})
