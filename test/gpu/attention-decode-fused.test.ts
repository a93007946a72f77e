/** One token's attention in one launch. Needs a CUDA device: `npm run test:gpu`. */
import { pagesOf } from '../support/attention-ops'
import { fromBf16, toBf16 } from '../support/bf16'
import { expectClose, expectSameBytes, ops, seededValues } from '../support/native-ops'
import { seededWeight } from '../support/weights'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

interface Dims {
  /** Of the new token; a context of one more. */
  offset: number
  Q: number
  KV: number
  D: number
  pageTokens: number
}
type Pages = Uint16Array[]

const EPS = 1e-6
const BASE = 1e6
const CONTEXTS = [1, 2, 16, 17, 63, 64, 65, 127, 128, 129, 512, 513, 2048, 2055]
const HEADS = [
  [2, 2],
  [8, 2],
  [5, 1],
  [16, 2],
] as const
const SHAPES: Dims[] = [64, 128].flatMap((D) =>
  HEADS.flatMap(([Q, KV]) => CONTEXTS.map((context) => ({ offset: context - 1, Q, KV, D, pageTokens: 64 }))),
)
// Several tiles a split, pages of less and of more than a tile.
const LONG: Dims[] = [
  { offset: 9000, Q: 32, KV: 8, D: 128, pageTokens: 64 },
  { offset: 6143, Q: 4, KV: 1, D: 64, pageTokens: 16 },
  { offset: 2200, Q: 8, KV: 2, D: 128, pageTokens: 48 },
  { offset: 4096, Q: 8, KV: 2, D: 128, pageTokens: 256 },
]

/** A cache of `offset` positions, NaN after them, and the projections of the next token. */
function inputsOf({ offset, Q, KV, D, pageTokens }: Dims, room = 1) {
  const pages = (seed: number, scale: number) => {
    const values = seededValues((offset + room) * KV * D, seed, scale)
    return pagesOf(values, offset + room, KV, D, pageTokens, 'bf16').map((page, p) => {
      for (let kv = 0; kv < KV; kv++) {
        const kept = Math.max(0, Math.min(pageTokens, offset - p * pageTokens))
        page.fill(0x7fff, (kv * pageTokens + kept) * D, (kv + 1) * pageTokens * D)
      }
      return page as Uint16Array
    })
  }
  return {
    kPages: pages(2, 2),
    vPages: pages(3, 1),
    q: toBf16(seededValues(Q * D, 4, 2)),
    k: toBf16(seededValues(KV * D, 5, 2)),
    v: toBf16(seededValues(KV * D, 6)),
    qW: seededValues(D, 7).map((w) => w + 1.5),
    kW: seededValues(D, 8).map((w) => w + 1.5),
  }
}
type Inputs = ReturnType<typeof inputsOf>

function tablesOf(position: number, D: number) {
  const [cosines, sines] = [new Float32Array(D / 2), new Float32Array(D / 2)]
  ops.ropeTableCuda!(cosines, sines, Int32Array.of(position), 1, D, BASE)
  return [cosines, sines] as const
}

const copied = (pages: Pages) => pages.map((page) => page.slice())
const numbered = (pages: Pages) => Object.fromEntries(pages.entries())

interface Result {
  y: Uint16Array
  kPages: Pages
  vPages: Pages
}

function expectSame(actual: Result, expected: Result) {
  expectSameBytes(actual.y, expected.y)
  expectSameBytes(numbered(actual.kPages), numbered(expected.kPages))
  expectSameBytes(numbered(actual.vPages), numbered(expected.vPages))
}

function fused(inputs: Inputs, dims: Dims & { position?: number; launches?: number; stages?: number }): Result {
  const [kPages, vPages] = [copied(inputs.kPages), copied(inputs.vPages)]
  const { q, k, v, qW, kW } = inputs
  const y = new Uint16Array(q.length).fill(0x7fff)
  const tables = tablesOf(dims.position ?? dims.offset, dims.D)
  ops.attentionDecodeFusedCuda!(y, kPages, vPages, q, k, v, qW, kW, ...tables, { ...dims, eps: EPS })
  return { y, kPages, vPages }
}

/** Norm, rotation and write by the launch of their own, then the CPU's attention over that cache. */
function inTurn(inputs: Inputs, dims: Dims) {
  const [kPages, vPages] = [copied(inputs.kPages), copied(inputs.vPages)]
  const { q, k, v, qW, kW } = inputs
  const rotated = new Uint16Array(q.length)
  const tables = tablesOf(dims.offset, dims.D)
  ops.qkNormRopeCacheCuda!(rotated, null, null, kPages, vPages, q, k, v, qW, kW, ...tables, { ...dims, T: 1, eps: EPS })
  const y = new Float32Array(q.length)
  ops.attentionCached!(y, fromBf16(rotated), kPages, vPages, { ...dims, T: 1, dtype: 'bf16' }, { threads: 16 })
  return { y, kPages, vPages }
}

withCuda(`one token's attention in one launch on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  test.each([...SHAPES, ...LONG])(
    'is norm, rotation, cache and attention in turn, offset $offset Q $Q KV $KV D $D in pages of $pageTokens',
    (dims) => {
      const inputs = inputsOf(dims)
      const [actual, expected] = [fused(inputs, dims), inTurn(inputs, dims)]
      expectSameBytes(numbered(actual.kPages), numbered(expected.kPages))
      expectSameBytes(numbered(actual.vPages), numbered(expected.vPages))
      // As for attention: y rounds once, probabilities before it.
      const largest = expected.y.reduce((most, x) => Math.max(most, Math.abs(x)), 0)
      expectClose(fromBf16(actual.y), expected.y, largest * 2 ** -7 + 1e-5, 2 ** -8)
    },
  )

  test.each([{ offset: 700, Q: 8, KV: 2, D: 64, pageTokens: 64 }, LONG[0]!])(
    'gives the same bytes twice, launch after launch, for any size of the launch, offset $offset',
    (dims) => {
      const inputs = inputsOf(dims)
      const once = fused(inputs, dims)
      expectSame(fused(inputs, dims), once)
      expectSame(fused(inputs, { ...dims, launches: 5 }), once)
      expectSame(fused(inputs, { ...dims, offset: 3 * dims.offset, position: dims.offset }), once)
      for (const stages of [1, 2, 3]) expectSame(fused(inputs, { ...dims, stages }), once)
    },
  )

  test.each([64, 128])('replayed as a graph gives what growing positions give one by one, D %i', (D) => {
    const [first, steps] = [60, 80]
    const dims = { offset: first, Q: 8, KV: 2, D, pageTokens: 64 }
    const inputs = inputsOf(dims, steps)
    const { q, k, v, qW, kW } = inputs
    let expected: Result = { y: q, kPages: inputs.kPages, vPages: inputs.vPages }
    for (let step = 0; step < steps; step++) {
      const { kPages, vPages } = expected
      expected = fused({ ...inputs, kPages, vPages }, { ...dims, offset: first + step })
    }
    const [kPages, vPages] = [copied(inputs.kPages), copied(inputs.vPages)]
    const y = new Uint16Array(q.length).fill(0x7fff)
    const options = { ...dims, offset: 4095, position: first - 1, eps: EPS, base: BASE, steps }
    ops.decodeStepsCuda!(y, kPages, vPages, q, k, v, qW, kW, seededWeight('bf16', 1, 64, 1), options)
    expectSame({ y, kPages, vPages }, expected)
  })

  test('loses no NaN of the new key or value', () => {
    const dims = { offset: 200, Q: 4, KV: 2, D: 128, pageTokens: 64 }
    for (const name of ['k', 'v'] as const) {
      const inputs = inputsOf(dims)
      inputs[name].fill(0x7fff, 0, 1)
      const y = fromBf16(fused(inputs, dims).y)
      expect(Number.isNaN(y[0])).toBe(true)
      expect(y.subarray(2 * dims.D).every(Number.isFinite)).toBe(true)
    }
  })

  test.each([
    { offset: 3, Q: 2, KV: 2, D: 80, pageTokens: 64 },
    { offset: 3, Q: 18, KV: 2, D: 64, pageTokens: 64 },
    { offset: 3, Q: 2, KV: 2, D: 64, pageTokens: 10 },
  ])('refuses what it does not cover, Q $Q KV $KV D $D in pages of $pageTokens', (dims) => {
    expect(() => fused(inputsOf(dims), dims)).toThrow('Expected 64 or 128 columns')
  })
})
