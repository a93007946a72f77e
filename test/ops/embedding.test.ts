import { sameForAllThreads } from '../support/isa-levels'
import { ops, seededValues, type OpOptions } from '../support/native-ops'
import { seededWeight, type Weight, type WeightKind } from '../support/weights'

const KINDS: WeightKind[] = ['nvfp4', 'nvfp4+residual', 'f32', 'f16', 'bf16']
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
const f32 = Math.fround

const sign = (negative: number) => (negative ? -1 : 1)
const e2m1 = (code: number) => sign(code & 8) * E2M1[code & 7]!
const e4m3 = (byte: number) => (byte >> 3 ? (1 + (byte & 7) / 8) * 2 ** ((byte >> 3) - 7) : ((byte & 7) / 8) * 2 ** -6)
const bf16 = (bits: number) => new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!
const f16 = (bits: number) => {
  const [exponent, mantissa] = [(bits >> 10) & 31, bits & 1023]
  return sign(bits >> 15) * (exponent ? (1 + mantissa / 1024) * 2 ** (exponent - 15) : mantissa * 2 ** -24)
}

function packed(codes: Uint8Array, scales: Uint8Array, global: number, row: number, column: number, cols: number) {
  const byte = codes[(row * cols + column) >> 1]!
  const code = column % 2 ? byte >> 4 : byte & 15
  return f32(f32(e2m1(code) * e4m3(scales[(row * cols + column) >> 4]!)) * f32(global))
}

/** Element by element from the definition; decoding is exact, so bytes are compared. */
function value(w: Weight, row: number, column: number): number {
  const at = row * w.cols + column
  if (w.storage === 'f32') return w.dense![at]!
  if (w.storage === 'bf16') return bf16(w.dense![at]!)
  if (w.storage === 'f16') return f16(w.dense![at]!)
  const main = packed(w.codes!, w.scales!, w.globalScale!, row, column, w.cols)
  if (!w.residualCodes) return main
  return f32(main + packed(w.residualCodes, w.residualScales!, w.residualGlobalScale!, row, column, w.cols))
}

function embed(w: Weight, ids: number[], options: OpOptions = {}) {
  const x = new Float32Array(ids.length * w.cols).fill(NaN)
  ops.embedding!(x, w, Int32Array.from(ids), ids.length, options)
  return x
}

function backward(ids: number[], H: number, begin: number, count: number, options: OpOptions = {}, start = 0) {
  const dx = seededValues(ids.length * H, 3)
  const dw = new Float32Array(count * H).fill(start)
  ops.embeddingBackward!(dw, dx, Int32Array.from(ids), ids.length, H, begin, count, options)
  return { dx, dw }
}

describe.each(KINDS)('embedding of %s', (kind) => {
  test.each([16, 48, 272])('decodes exactly the rows that were asked, %i columns', (H) => {
    const w = seededWeight(kind, 19, H, 7)
    const ids = [0, 18, 5, 5, 11, 0, 1, 2, 3, 4]
    const expected = ids.flatMap((id) => Array.from({ length: H }, (_, h) => value(w, id, h)))
    expect([...embed(w, ids)]).toEqual(expected)
  })

  test('gives equal bytes for any number of threads', () => {
    const w = seededWeight(kind, 40, 64, 8)
    const ids = Array.from({ length: 100 }, (_, t) => (t * 7) % 40)
    sameForAllThreads((threads) => embed(w, ids, { threads }))
  })

  test('gives nothing for no ids', () => {
    expect(embed(seededWeight(kind, 2, 16, 9), [])).toHaveLength(0)
  })
})

test('embedding decodes dense rows of any width', () => {
  const w = seededWeight('f32', 5, 7, 4)
  expect(embed(w, [4, 0])).toEqual(Float32Array.from([...w.dense!.subarray(28), ...w.dense!.subarray(0, 7)]))
})

describe('embeddingBackward', () => {
  const ids = [3, 0, 3, 7, 9, 3, 2, 0, 8, 3]

  test.each([1, 7, 256, 257, 600])('sums the rows of equal ids in the order of t, %i columns', (H) => {
    const { dx, dw } = backward(ids, H, 0, 10)
    const expected = new Float32Array(10 * H)
    ids.forEach((id, t) => {
      for (let h = 0; h < H; h++) expected[id * H + h] = expected[id * H + h]! + dx[t * H + h]!
    })
    expect(dw).toEqual(expected)
  })

  test('takes a slice of the vocabulary and ignores the rest', () => {
    const whole = backward(ids, 20, 0, 10).dw
    for (const [begin, count] of [
      [0, 3],
      [3, 1],
      [3, 5],
      [9, 1],
    ] as const) {
      expect(backward(ids, 20, begin, count).dw).toEqual(whole.slice(begin * 20, (begin + count) * 20))
    }
  })

  test('adds to what the gradient holds', () => {
    const { dw } = backward([1, 2], 4, 0, 3, {}, 5)
    expect([...dw.subarray(0, 4)]).toEqual([5, 5, 5, 5])
    expect(dw[4]).toBe(f32(5 + seededValues(8, 3)[0]!))
  })

  test('is the transpose of the lookup', () => {
    const w = seededWeight('f32', 10, 24, 11)
    const { dx, dw } = backward(ids, 24, 0, 10)
    const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a).reduce((sum, v, i) => sum + v * b[i]!, 0)
    expect(Math.abs(dot(embed(w, ids), dx) - dot(w.dense!, dw))).toBeLessThan(1e-4)
    expect(Math.abs(dot(w.dense!, dw))).toBeGreaterThan(1e-2)
  })

  test('gives equal bytes for any number of threads', () => {
    sameForAllThreads((threads) => backward(ids, 1000, 0, 10, { threads }).dw)
  })
})
