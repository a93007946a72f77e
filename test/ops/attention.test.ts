import {
  attention,
  attentionBackward,
  attentionCached,
  attentionInputs,
  pagesOf,
  rounded,
  startsOf,
} from '../support/attention-ops'
import { attentionBackwardReference, attentionReference, type AttentionDims } from '../support/attention-reference'
import { expectClose, expectSameBytes, ops, seededValues, type OpOptions } from '../support/native-ops'

const levels = (['portable', 'avx2', 'avx512', 'neon'] as const).filter((isa) => {
  try {
    ops.attentionExp!(new Float32Array(16), new Float32Array(16), { isa })
    return true
  } catch {
    return false
  }
})

// f32 sums of up to D products of size 4 and of up to T probabilities: a few hundred roundings of 6e-8.
const ATOL = 2e-5
const RTOL = 2e-5

const dims = (B: number, T: number, Q: number, KV: number, D: number): AttentionDims => ({ B, T, Q, KV, D })
const SHAPES = [
  dims(1, 1, 1, 1, 1),
  dims(1, 1, 4, 2, 16),
  dims(2, 7, 6, 2, 10),
  dims(1, 33, 4, 1, 32),
  dims(1, 63, 2, 2, 24),
  dims(1, 64, 8, 2, 64),
  dims(2, 65, 4, 4, 17),
  dims(1, 129, 3, 1, 128),
  dims(1, 131, 2, 1, 256),
  dims(1, 3, 130, 1, 8),
]

/** References are the same on every level: each is computed once. */
const memo = new Map<string, unknown>()
function once<T>(key: unknown, make: () => T): T {
  const name = JSON.stringify(key)
  if (!memo.has(name)) memo.set(name, make())
  return memo.get(name) as T
}

const maskOf = (B: number, T: number, visible: (t: number, b: number) => boolean) =>
  Uint8Array.from({ length: B * T }, (_, i) => (visible(i % T, Math.floor(i / T)) ? 1 : 0))

const MASKS = {
  'no mask': () => null,
  'padding on the left': ({ B, T }: AttentionDims) => maskOf(B, T, (t, b) => t >= b + Math.floor(T / 3)),
  'padding on the right': ({ B, T }: AttentionDims) => maskOf(B, T, (t) => t < Math.ceil(T / 2)),
  holes: ({ B, T }: AttentionDims) => maskOf(B, T, (t, b) => (t * 7 + b) % 3 !== 0),
}

describe.each(levels)('attention on %s', (isa) => {
  describe.each(Object.entries(MASKS))('with %s', (maskName, maskFor) => {
    test.each(SHAPES)('equals softmax(q·k)·v in doubles at B $B T $T Q $Q KV $KV D $D', (shape) => {
      const inputs = attentionInputs(shape)
      const mask = maskFor(shape)
      const { y, lse } = attention(inputs, mask, shape, { isa })
      const expected = once(['forward', maskName, shape], () =>
        attentionReference(inputs.q, inputs.k, inputs.v, mask, shape),
      )
      expectClose(y, expected.y, ATOL, RTOL)
      expected.lse.forEach((value, i) => {
        if (value === -Infinity) expect(lse[i]).toBe(-Infinity)
        else expectClose([lse[i]!], [value], ATOL, RTOL)
      })
    })

    test.each(SHAPES)('has the gradients of the doubles at B $B T $T Q $Q KV $KV D $D', (shape) => {
      const inputs = attentionInputs(shape)
      const mask = maskFor(shape)
      const dy = seededValues(inputs.q.length, 9)
      const actual = attentionBackward(dy, inputs, mask, shape, { isa })
      const expected = once(['backward', maskName, shape], () =>
        attentionBackwardReference(dy, inputs.q, inputs.k, inputs.v, mask, shape),
      )
      for (const name of ['dq', 'dk', 'dv'] as const) expectClose(actual[name], expected[name], 1e-4, 5e-5)
    })
  })

  test.each([
    { lengths: [1, 2, 4], Q: 4, KV: 2, D: 16 },
    { lengths: [63, 1, 65, 71], Q: 8, KV: 2, D: 32 },
    { lengths: [130, 64], Q: 3, KV: 3, D: 20 },
    { lengths: [3, 40], Q: 130, KV: 1, D: 8 },
  ])('gives segments of $lengths tokens the bytes they have alone, Q $Q KV $KV D $D', ({ lengths, Q, KV, D }) => {
    const B = 2
    const T = lengths.reduce((sum, length) => sum + length)
    const shape = dims(B, T, Q, KV, D)
    const inputs = attentionInputs(shape)
    const dy = seededValues(inputs.q.length, 5)
    for (const mask of [null, maskOf(B, T, (t, b) => (t * 7 + b) % 3 !== 0)]) {
      const packed = { ...shape, starts: startsOf(B, lengths) }
      const whole = {
        ...attention(inputs, mask, packed, { isa }),
        ...attentionBackward(dy, inputs, mask, packed, { isa }),
      }
      for (let b = 0, first = 0; b < B; b++) {
        for (const length of lengths) {
          const rows = (x: Float32Array, width: number) => x.slice(first * width, (first + length) * width)
          const alone = dims(1, length, Q, KV, D)
          const [q, k, v] = [rows(inputs.q, Q * D), rows(inputs.k, KV * D), rows(inputs.v, KV * D)]
          const own = mask && mask.slice(first, first + length)
          expectSameBytes(
            { y: rows(whole.y, Q * D), lse: rows(whole.lse, Q), dq: rows(whole.dq, Q * D) },
            {
              ...attention({ q, k, v }, own, alone, { isa }),
              dq: attentionBackward(rows(dy, Q * D), { q, k, v }, own, alone, { isa }).dq,
            },
          )
          const { dk, dv } = attentionBackward(rows(dy, Q * D), { q, k, v }, own, alone, { isa })
          expectSameBytes({ dk: rows(whole.dk, KV * D), dv: rows(whole.dv, KV * D) }, { dk, dv })
          first += length
        }
      }
      expectSameBytes(attention(inputs, mask, packed, { isa, threads: 3 }), { y: whole.y, lse: whole.lse })
    }
  })

  test('equals the reference over a context of 3000 tokens', () => {
    const shape = dims(1, 3000, 1, 1, 8)
    const inputs = attentionInputs(shape)
    const { y, lse } = attention(inputs, null, shape, { isa, threads: 2 })
    const expected = once(shape, () => attentionReference(inputs.q, inputs.k, inputs.v, null, shape))
    expectClose(y, expected.y, ATOL, RTOL)
    expectClose(lse, expected.lse, ATOL, RTOL)
  })

  test('gives zeros, an lse of −∞ and zero gradients where every key is hidden', () => {
    const shape = dims(2, 70, 4, 2, 16)
    const inputs = attentionInputs(shape)
    const mask = maskOf(2, 70, (_, b) => b === 1)
    const half = inputs.q.length / 2
    const { y, lse } = attention(inputs, mask, shape, { isa })
    expect(y.subarray(0, half).every((x) => x === 0)).toBe(true)
    expect(lse.subarray(0, lse.length / 2).every((x) => x === -Infinity)).toBe(true)
    expect(y.subarray(half).some((x) => x !== 0)).toBe(true)
    const { dq, dk, dv } = attentionBackward(seededValues(inputs.q.length, 4), inputs, mask, shape, { isa })
    for (const gradient of [dq, dk, dv]) {
      expect(gradient.subarray(0, gradient.length / 2).every((x) => x === 0)).toBe(true)
      expect(gradient.every(Number.isFinite)).toBe(true)
    }
  })

  test('reads nothing of a hidden key, not even a NaN', () => {
    const shape = dims(1, 40, 2, 1, 16)
    const inputs = attentionInputs(shape)
    const mask = maskOf(1, 40, (t) => t !== 11)
    const dy = seededValues(inputs.q.length, 4)
    const clean = attentionBackward(dy, inputs, mask, shape, { isa })
    inputs.k.fill(NaN, 11 * 16, 12 * 16)
    inputs.v.fill(NaN, 11 * 16, 12 * 16)
    expect(attention(inputs, mask, shape, { isa }).y.every(Number.isFinite)).toBe(true)
    expect(attentionBackward(dy, inputs, mask, shape, { isa })).toEqual(clean)
  })

  test('lets a NaN in a visible key through instead of hiding it', () => {
    const shape = dims(1, 20, 1, 1, 16)
    const inputs = attentionInputs(shape)
    inputs.k[0] = NaN
    expect(attention(inputs, null, shape, { isa }).y.every(Number.isNaN)).toBe(true)
  })

  test('stays exact to f32 when scores lie hundreds apart', () => {
    const shape = dims(1, 70, 2, 1, 16)
    const inputs = { ...attentionInputs(shape), q: seededValues(70 * 2 * 16, 8, 300) }
    const { y, lse } = attention(inputs, null, shape, { isa })
    const expected = attentionReference(inputs.q, inputs.k, inputs.v, null, shape)
    // Scores of some 1000 carry an f32 error of 1e-4 into the exponent.
    expectClose(y, expected.y, 1e-3)
    expectClose(lse, expected.lse, 1e-3, 1e-6)
  })

  test('has slopes equal to finite differences of its forward pass', () => {
    const shape = dims(1, 9, 4, 2, 6)
    const inputs = attentionInputs(shape)
    const mask = maskOf(1, 9, (t) => t !== 2)
    const dy = seededValues(inputs.q.length, 5)
    const value = (changed: typeof inputs) =>
      attention(changed, mask, shape, { isa }).y.reduce((sum, y, i) => sum + y * dy[i]!, 0)
    const gradients = attentionBackward(dy, inputs, mask, shape, { isa })
    for (const name of ['q', 'k', 'v'] as const) {
      const step = 1 / 64
      const slopes = Array.from(inputs[name], (x, i) => {
        const at = (to: number) => value({ ...inputs, [name]: inputs[name].map((old, j) => (j === i ? to : old)) })
        return (at(x + step) - at(x - step)) / (2 * step)
      })
      // Central differences: f32 noise 1e-6 / step, curvature step² / 6 times a third derivative of a few units.
      expectClose(gradients[`d${name}`], slopes, 2e-3)
    }
  })

  test('gives the same bytes on 1, 2 and 3 threads, and twice', () => {
    const shape = dims(2, 150, 4, 2, 32)
    const inputs = attentionInputs(shape)
    const mask = maskOf(2, 150, (t) => t > 3)
    const dy = seededValues(inputs.q.length, 6)
    const one = { ...attention(inputs, mask, shape, { isa }), ...attentionBackward(dy, inputs, mask, shape, { isa }) }
    for (const threads of [1, 2, 3]) {
      const options = { isa, threads }
      expect({
        ...attention(inputs, mask, shape, options),
        ...attentionBackward(dy, inputs, mask, shape, options),
      }).toEqual(one)
    }
  })

  test('has an exponential within 2e-7 of Math.exp, with exp(−∞) = 0 and NaN kept', () => {
    const points = Array.from({ length: 1 << 16 }, (_, i) => -87.3 + (i * 175.2) / 65535)
    const x = Float32Array.from([
      ...points,
      -Infinity,
      -1e30,
      -104,
      -88,
      -1e-30,
      0,
      -0,
      1e-30,
      ...Array<number>(8).fill(NaN),
    ])
    const y = new Float32Array(x.length)
    ops.attentionExp!(y, x, { isa })
    points.forEach((_, i) => expectRelative(y[i]!, Math.exp(x[i]!), 2e-7))
    const special = y.subarray(points.length)
    expect([...special.subarray(0, 2)]).toEqual([0, 0])
    // Below 2^-126 a kernel may flush to zero.
    expect(special[2]).toBeLessThan(2 ** -126)
    expect(special[3]).toBeLessThan(2 ** -126)
    expect([...special.subarray(4, 8)]).toEqual([1, 1, 1, 1])
    expect([...special.subarray(8)].every(Number.isNaN)).toBe(true)
  })
})

function expectRelative(actual: number, expected: number, tolerance: number) {
  if (!(Math.abs(actual - expected) <= tolerance * expected))
    throw new Error(`expected ${expected} but received ${actual}`)
}

describe.each(levels)('attention over a cache on %s', (isa) => {
  const uncached = (shape: AttentionDims, inputs: ReturnType<typeof attentionInputs>) =>
    attention(inputs, null, shape, { isa }).y

  test.each([
    { Q: 4, KV: 2, D: 16, pageTokens: 8 },
    { Q: 6, KV: 1, D: 10, pageTokens: 5 },
    { Q: 8, KV: 8, D: 128, pageTokens: 64 },
    { Q: 16, KV: 1, D: 64, pageTokens: 256 },
  ])('fed 9, 7 and five times 1 token equals the whole at once at Q $Q KV $KV D $D', ({ Q, KV, D, pageTokens }) => {
    const T = 21
    const inputs = attentionInputs(dims(1, T, Q, KV, D))
    const expected = uncached(dims(1, T, Q, KV, D), inputs)
    let offset = 0
    for (const count of [9, 7, 1, 1, 1, 1, 1]) {
      const kPages = pagesOf(inputs.k, offset + count, KV, D, pageTokens, 'f32')
      const vPages = pagesOf(inputs.v, offset + count, KV, D, pageTokens, 'f32')
      const rows = [offset * Q * D, (offset + count) * Q * D] as const
      const y = attentionCached(
        inputs.q.subarray(...rows),
        kPages,
        vPages,
        { T: count, offset, Q, KV, D, pageTokens, dtype: 'f32' },
        { isa },
      )
      expectClose(y, expected.subarray(...rows), ATOL, RTOL)
      offset += count
    }
  })

  describe.each(['f32', 'f16', 'bf16'] as const)('of %s', (dtype) => {
    test.each([
      { T: 1, context: 1, Q: 4, KV: 2, D: 32 },
      { T: 1, context: 64, Q: 2, KV: 2, D: 48 },
      { T: 1, context: 65, Q: 3, KV: 1, D: 15 },
      { T: 1, context: 1101, Q: 4, KV: 2, D: 32 },
      { T: 3, context: 530, Q: 4, KV: 2, D: 128 },
      { T: 5, context: 700, Q: 24, KV: 2, D: 16 },
      { T: 90, context: 200, Q: 4, KV: 2, D: 32 },
    ])('T $T at context $context, Q $Q KV $KV D $D equals the values that the cache holds', (shape) => {
      const { T, context, Q, KV, D } = shape
      const whole = dims(1, context, Q, KV, D)
      const inputs = attentionInputs(whole)
      const pageTokens = 48
      const offset = context - T
      const q = inputs.q.subarray(offset * Q * D)
      const pages = [inputs.k, inputs.v].map((x) => pagesOf(x, context, KV, D, pageTokens, dtype))
      const y = attentionCached(q, pages[0]!, pages[1]!, { T, offset, Q, KV, D, pageTokens, dtype }, { isa })
      // Against the values as stored, so that the tolerance is that of the arithmetic whatever the dtype.
      const stored = {
        q: inputs.q,
        k: inputs.k.map((x) => rounded(x, dtype)),
        v: inputs.v.map((x) => rounded(x, dtype)),
      }
      expectClose(y, uncached(whole, stored).subarray(offset * Q * D), ATOL, RTOL)
      // Against the unrounded values: k of size 2 carries 2^-9 (bf16) or 2^-12 (f16) relative into scores of a few units.
      const rounding = { f32: ATOL, f16: 4e-3, bf16: 3e-2 }[dtype]
      expectClose(y, uncached(whole, inputs).subarray(offset * Q * D), rounding)
    })
  })

  test('gives the same bytes on 1, 2 and 3 threads, and twice, where keys are split', () => {
    const [context, Q, KV, D] = [2100, 4, 1, 32]
    const inputs = attentionInputs(dims(1, context, Q, KV, D))
    const pages = [inputs.k, inputs.v].map((x) => pagesOf(x, context, KV, D, 128, 'bf16'))
    const run = (options: OpOptions) =>
      attentionCached(
        inputs.q.subarray((context - 1) * Q * D),
        pages[0]!,
        pages[1]!,
        { T: 1, offset: context - 1, Q, KV, D, pageTokens: 128, dtype: 'bf16' },
        options,
      )
    const one = run({ isa, threads: 1 })
    for (const threads of [1, 2, 3]) expect(run({ isa, threads })).toEqual(one)
  })

  test('keeps a NaN that the cache holds', () => {
    const [context, Q, KV, D] = [600, 2, 1, 16]
    const inputs = attentionInputs(dims(1, context, Q, KV, D))
    inputs.k[5 * D] = NaN
    const pages = [inputs.k, inputs.v].map((x) => pagesOf(x, context, KV, D, 128, 'f32'))
    const q = inputs.q.subarray((context - 1) * Q * D)
    const y = attentionCached(
      q,
      pages[0]!,
      pages[1]!,
      { T: 1, offset: 599, Q, KV, D, pageTokens: 128, dtype: 'f32' },
      { isa },
    )
    expect(y.every(Number.isNaN)).toBe(true)
  })
})

test.each(levels.slice(1).filter((isa) => isa !== 'neon'))('attention on %s runs kernels of its own', (isa) => {
  const x = seededValues(4096, 1, 20)
  const [fast, truth] = [isa, 'portable' as const].map((level) => {
    const y = new Float32Array(x.length)
    ops.attentionExp!(y, x, { isa: level })
    return y
  })
  // Last bits differ; equal bytes would mean that the portable kernels ran, and that the tests above said nothing.
  expect(fast).not.toEqual(truth)
})

test.each(levels.slice(1))('attention on %s equals the portable kernels to f32 rounding', (isa) => {
  const shape = dims(1, 200, 8, 2, 80)
  const inputs = attentionInputs(shape)
  const dy = seededValues(inputs.q.length, 3)
  const [fast, truth] = [isa, 'portable' as const].map((level) => ({
    ...attention(inputs, null, shape, { isa: level }),
    ...attentionBackward(dy, inputs, null, shape, { isa: level }),
  }))
  for (const name of ['y', 'lse', 'dq', 'dk', 'dv'] as const) expectClose(fast![name], truth![name], ATOL, RTOL)
})

describe('attention refuses', () => {
  const call = (shape: AttentionDims) => () =>
    attention({ q: new Float32Array(64), k: new Float32Array(64), v: new Float32Array(64) }, null, shape)

  test('query heads that are no multiple of the key heads', () => {
    expect(call(dims(1, 1, 3, 2, 4))).toThrow('Expected query heads in multiples of key heads but received Q 3, KV 2')
  })
  test.each([
    [[0, 0, 2, 1], 'starts[3] but received 1'],
    [[1, 1, 1, 1], 'starts[0] but received 1'],
    [[0, 0, 3, 3], 'starts[2] but received 3'],
  ])('starts %j, which no segments have', (starts, message) => {
    const inputs = { q: new Float32Array(16), k: new Float32Array(16), v: new Float32Array(16) }
    const run = () => attention(inputs, null, { ...dims(1, 4, 1, 1, 4), starts: Int32Array.from(starts) })
    expect(run).toThrow(`Expected a token's own position or the start before it for ${message}`)
  })
  test('a head dim past what its scratch holds', () => {
    expect(call(dims(1, 1, 1, 1, 513))).toThrow('Expected a head dim of 1 to 512 but received 513')
  })
  test('a cache of another dtype, a negative offset and pages of nothing', () => {
    const cached = { T: 1, offset: 0, Q: 1, KV: 1, D: 4, pageTokens: 4, dtype: 'f32' as const }
    const run = (change: object) => () =>
      attentionCached(new Float32Array(4), [new Float32Array(16)], [new Float32Array(16)], { ...cached, ...change })
    expect(run({ dtype: 'u8' })).toThrow('Expected f32, f16 or bf16 for dtype but received u8')
    expect(run({ offset: -1 })).toThrow('Expected an offset of 0 or more')
    expect(run({ pageTokens: 0 })).toThrow('pages of 1 or more tokens')
  })
})
