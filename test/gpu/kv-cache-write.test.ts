/** Keys and values into a paged cache on CUDA. Needs a CUDA device: `npm run test:gpu`. */
import { pagesOf } from '../support/attention-ops'
import { toBf16 } from '../support/bf16'
import { ops, seededValues } from '../support/native-ops'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

interface Dims {
  T: number
  offset: number
  KV: number
  D: number
  pageTokens: number
}

const SHAPES: Dims[] = [
  { T: 1, offset: 0, KV: 1, D: 16, pageTokens: 64 },
  { T: 1, offset: 129, KV: 8, D: 128, pageTokens: 64 },
  { T: 7, offset: 61, KV: 2, D: 64, pageTokens: 64 },
  { T: 200, offset: 100, KV: 8, D: 128, pageTokens: 64 },
  { T: 33, offset: 5, KV: 3, D: 48, pageTokens: 10 },
]

/** Pages of offset + T positions in which the first `offset` hold values and the others NaN. */
const before = (x: Float32Array, { offset, T, KV, D, pageTokens }: Dims) =>
  pagesOf(x.slice(), offset + T, KV, D, pageTokens, 'bf16').map((page, p) => {
    for (let kv = 0; kv < KV; kv++) {
      const kept = Math.max(0, Math.min(pageTokens, offset - p * pageTokens))
      page.fill(0x7fff, (kv * pageTokens + kept) * D, (kv + 1) * pageTokens * D)
    }
    return page
  })

function caches(shape: Dims) {
  const values = (shape.offset + shape.T) * shape.KV * shape.D
  const of = (seed: number) => {
    const x = seededValues(values, seed)
    const after = pagesOf(x, shape.offset + shape.T, shape.KV, shape.D, shape.pageTokens, 'bf16')
    return { pages: before(x, shape), after, rows: toBf16(x.subarray(shape.offset * shape.KV * shape.D)) }
  }
  return { k: of(1), v: of(2) }
}

withCuda(`writing a cache on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each([...SHAPES, { T: 3, offset: 2, KV: 2, D: 5, pageTokens: 4 }])(
    'puts T $T tokens at $offset, KV $KV D $D in pages of $pageTokens, and nothing elsewhere',
    (shape) => {
      for (const dims of [shape, { ...shape, offset: 9999, position: shape.offset }]) {
        const { k, v } = caches(shape)
        ops.kvCacheWriteCuda!(k.pages, v.pages, k.rows, v.rows, dims)
        expect(k.pages).toEqual(k.after)
        expect(v.pages).toEqual(v.after)
      }
    },
  )

  it.each(SHAPES)('norm, rotation and write in one are those in turn, T $T offset $offset KV $KV D $D', (shape) => {
    const { T, offset, KV, D } = shape
    const Q = 2 * KV
    const eps = 1e-6
    const q = toBf16(seededValues(T * Q * D, 3, 2))
    const [qW, kW] = [4, 5].map((seed) => seededValues(D, seed).map((w) => w + 1.5))
    const [cosines, sines] = [new Float32Array((T * D) / 2), new Float32Array((T * D) / 2)]
    const positions = Int32Array.from({ length: T }, (_, t) => offset + t)
    ops.ropeTable!(cosines, sines, positions, T, D, 1e6)

    const { k, v } = caches(shape)
    const inTurn = { q: new Uint16Array(q.length), k: new Uint16Array(k.rows.length) }
    const inverse = { q: new Float32Array(T * Q), k: new Float32Array(T * KV) }
    ops.qkNormRopeCuda!(inTurn.q, inTurn.k, inverse.q, inverse.k, q, k.rows, qW, kW, cosines, sines, T, Q, KV, D, eps)
    const expected = k.pages
    ops.kvCacheWriteCuda!(expected, v.pages, inTurn.k, v.rows, shape)

    for (const dims of [{ ...shape }, { ...shape, offset: 9999, position: offset }]) {
      const fused = caches(shape)
      const y = new Uint16Array(q.length).fill(0x7fff)
      const fusedInverse = { q: new Float32Array(T * Q), k: new Float32Array(T * KV) }
      ops.qkNormRopeCacheCuda!(
        y,
        fusedInverse.q,
        fusedInverse.k,
        fused.k.pages,
        fused.v.pages,
        q,
        fused.k.rows,
        fused.v.rows,
        qW,
        kW,
        cosines,
        sines,
        { ...dims, Q, eps },
      )
      expect(y).toEqual(inTurn.q)
      expect(fusedInverse).toEqual(inverse)
      expect(fused.k.pages).toEqual(expected)
      expect(fused.v.pages).toEqual(fused.v.after)
    }
  })
})
