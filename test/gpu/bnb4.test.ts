/** Products with bitsandbytes weights on CUDA. Needs a CUDA device and cuBLASLt: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { codebookNames, decodeBnb4, seededBnb4 } from '../support/bnb4'
import { expectClose, expectSameBytes, ops, seededValues } from '../support/native-ops'
import { seededWeight, type Weight } from '../support/weights'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

const MANY: [T: number, N: number, K: number][] = [
  [9, 40, 320],
  [16, 700, 448],
  [33, 200, 256],
  [130, 31, 576],
]
/** Slices of 128 rows or 64 columns, which the larger of these shapes have several of; and the default, one slice. */
const SLICES = [{ sliceBytes: 0 }, {}]
const THREADS = { threads: 16 }

/** Sums of K products of about a fifth in the tensor cores truncate, 16 columns a step. */
const atol = (K: number) => 2 ** -23 * (K / 4) * 0.2 * Math.sqrt(K) + 1e-6
const ROUNDED = 2 ** -8 + 1e-6

const poisoned = (count: number, f32: boolean) =>
  f32 ? new Float32Array(count).fill(NaN) : new Uint16Array(count).fill(0x7fc0)
const values = (array: Float32Array | Uint16Array) => (array instanceof Float32Array ? array : fromBf16(array))
const rowsOf = (weight: Weight | Weight[]) => [weight].flat().reduce((sum, part) => sum + part.rows, 0)

function linear(x: Uint16Array, weight: Weight | Weight[], T: number, f32 = true, options: object = {}): Float32Array {
  const y = poisoned(T * rowsOf(weight), f32)
  ops.linearCuda!(y, x, weight, T, false, options)
  return values(y)
}

function inputGradient(dy: Uint16Array, weight: Weight | Weight[], T: number, K: number, options: object = {}) {
  const dx = poisoned(T * K, false)
  ops.linearBackwardInputCuda!(dx, dy, weight, T, false, options)
  return values(dx)
}

function reference(x: Uint16Array, weight: Weight, T: number): Float32Array {
  const y = new Float32Array(T * weight.rows)
  ops.linearReference!(y, fromBf16(x), weight, T, THREADS)
  return y
}

/** What more than eight tokens and gradients multiply by: the values, rounded to bf16. */
const rounded = (weight: Weight): Weight => ({
  storage: 'bf16',
  rows: weight.rows,
  cols: weight.cols,
  dense: toBf16(decodeBnb4(weight)),
})

withCuda(`bitsandbytes weights on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each(codebookNames)('multiply more tokens by the values of %s rounded to bf16', (codebook) => {
    for (const [T, N, K] of MANY) {
      const weight = seededBnb4(codebook, N, K, N + K)
      const x = toBf16(seededValues(T * K, T + 11))
      const expected = reference(x, rounded(weight), T)
      for (const slices of SLICES) {
        expectClose(linear(x, weight, T, true, slices), expected, atol(K), 1e-6)
        expectClose(linear(x, weight, T, false, slices), expected, atol(K), ROUNDED)
      }
    }
  })

  it('add to what y holds', () => {
    for (const [T, N, K] of [
      [3, 41, 320],
      [1, 33, 4096],
      [17, 130, 256],
    ] as const) {
      const weight = seededBnb4('nf4', N, K, 5)
      const x = toBf16(seededValues(T * K, 6))
      const before = seededValues(T * N, 7)
      const y = before.slice()
      ops.linearCuda!(y, x, weight, T, true)
      const expected = reference(x, T > 8 ? rounded(weight) : weight, T).map((value, i) => value + before[i]!)
      expectClose(y, expected, atol(K), 1e-6)
    }
  })

  it('multiply as a stack, also beside weights of another form', () => {
    const K = 320
    const stacks: Weight[][] = [
      [seededBnb4('nf4', 300, K, 1), seededBnb4('nf4', 70, K, 2), seededBnb4('nf4', 33, K, 3)],
      [seededBnb4('nf4', 40, K, 1), seededBnb4('fp4', 130, K, 2)],
      [seededBnb4('nf4', 40, K, 1), seededWeight('nvfp4', 130, K, 2), seededBnb4('fp4', 8, K, 3)],
      [seededWeight('bf16', 40, K, 1), seededBnb4('fp4', 130, K, 2)],
    ]
    for (const stack of stacks) {
      const N = rowsOf(stack)
      for (const T of [1, 5, 40]) {
        const x = toBf16(seededValues(T * K, 1))
        const alone = stack.map((part) => linear(x, part, T))
        const y = new Float32Array(T * N)
        for (let t = 0; t < T; t++) {
          let at = t * N
          stack.forEach((part, i) => {
            y.set(alone[i]!.subarray(t * part.rows, (t + 1) * part.rows), at)
            at += part.rows
          })
        }
        // Together, few tokens of unlike weights are multiplied as many are: with rounded values.
        const alike = stack.every(({ codebook }) => codebook === 'nf4') || T > 8
        expectClose(linear(x, stack, T), y, atol(K) + (alike ? 0 : 2 ** -9 * Math.sqrt(K) * 0.6), 1e-6)
        if (alike && T <= 8) expectSameBytes(linear(x, stack, T), y)
      }
    }
  })

  it('have the input gradient dy · w, one token and many, alone and as a stack', () => {
    for (const [T, N, K] of [...MANY, [1, 48, 64], [5, 33, 320], [3, 1100, 512]] as const) {
      const weight = seededBnb4('nf4', N, K, N + K)
      const dy = toBf16(seededValues(T * N, T + 3))
      const expected = new Float32Array(T * K)
      ops.linearBackwardInput!(expected, fromBf16(dy), rounded(weight), T, false, THREADS)
      for (const slices of SLICES) {
        const dx = inputGradient(dy, weight, T, K, slices)
        expectClose(dx, expected, 2 * atol(N), ROUNDED)
        expectSameBytes(inputGradient(dy, weight, T, K, slices), dx)
      }
    }
    const [T, K] = [5, 320]
    const stack = [seededBnb4('nf4', 96, K, 1), seededWeight('nvfp4', 64, K, 2), seededBnb4('fp4', 32, K, 3)]
    const dy = toBf16(seededValues(T * 192, 2))
    const expected = new Float32Array(T * K)
    let first = 0
    for (const part of stack) {
      const mine = fromBf16(dy).filter((_, i) => i % 192 >= first && i % 192 < first + part.rows)
      const dense = part.storage === 'bnb4' ? rounded(part) : part
      ops.linearBackwardInput!(expected, mine, dense, T, true, THREADS)
      first += part.rows
    }
    expectClose(inputGradient(dy, stack, T, K), expected, 16 * atol(192), ROUNDED)
  })

  it.each([64, 192, 1024, 2560])('give the embedding rows of the CPU, rounded, %i columns', (H) => {
    for (const codebook of codebookNames) {
      const weight = seededBnb4(codebook, 19, H, 7)
      const ids = Int32Array.of(0, 18, 5, 5, 11)
      const x = new Uint16Array(ids.length * H).fill(0x7fff)
      ops.embeddingCuda!(x, weight, ids, ids.length)
      const expected = new Float32Array(ids.length * H)
      ops.embedding!(expected, weight, ids, ids.length)
      expectSameBytes(x, toBf16(expected))
    }
  })
})

if (probe.devices === 0) {
  it('says why there is no CUDA', () => {
    const asked = () => ops.linearCuda!(new Uint16Array(4), new Uint16Array(64), seededBnb4('nf4', 4, 64, 1), 1, false)
    expect(asked).toThrow('CUDA cannot be used')
  })
}
