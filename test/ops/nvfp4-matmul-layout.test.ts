/**
 * The operands of the NVFP4 product of Blackwell's tensor cores (csrc/core/cublaslt.h), multiplied here as NVIDIA
 * documents that cuBLASLt reads them: codes row by row, even column in the low nibble; one scale per 16 columns, in
 * tiles of 128 rows by 4 scales, in which 32 rows lie 16 bytes apart and the four groups of 32 rows 4 bytes apart.
 */
import { expectClose, ops, seededValues } from '../support/native-ops'

const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6]

interface Operand {
  codes: Uint8Array
  scales: Uint8Array
  globalScale: number
}

function quantized(rows: number, K: number, seed: number): Operand {
  const x = seededValues(rows * K, seed)
  const globalScale = ops.twoLevelGlobalScale!(ops.amax!(x, rows, K)) as number
  const [codes, scales] = [new Uint8Array((rows * K) / 2), new Uint8Array((rows * K) / 16)]
  ops.quantizeNvfp4!(codes, scales, x, rows, K, { globalScale })
  return { codes, scales, globalScale }
}

function blocked(operand: Operand, rows: number, K: number): Uint8Array {
  const cols = K / 16
  const bytes = new Uint8Array(Math.ceil(rows / 128) * Math.ceil(cols / 4) * 512).fill(0xff)
  ops.toBlockedScales!(bytes, operand.scales, rows, cols)
  return bytes
}

/** Walks the tiles in the order of memory, so that nothing here repeats the formula that wrote them. */
function readScales(bytes: Uint8Array, rows: number, K: number): Float32Array {
  const cols = K / 16
  const out = new Float32Array(rows * cols)
  let at = 0
  for (let tileRow = 0; tileRow < rows; tileRow += 128) {
    for (let tileCol = 0; tileCol < cols; tileCol += 4) {
      for (let inner = 0; inner < 32; inner++) {
        for (let group = 0; group < 4; group++) {
          for (let col = 0; col < 4; col++, at++) {
            const [row, column] = [tileRow + group * 32 + inner, tileCol + col]
            if (row >= rows || column >= cols) expect(bytes[at]).toBe(0)
            else ops.decodeE4m3!(out.subarray(row * cols + column, row * cols + column + 1), bytes.subarray(at, at + 1))
          }
        }
      }
    }
  }
  expect(at).toBe(bytes.length)
  return out
}

it('the blocked operands of the NVFP4 product multiply to what linear gives', () => {
  for (const [M, N, K] of [
    [130, 16, 96],
    [3, 144, 32],
    [1, 32, 320],
  ] as const) {
    const [a, b] = [quantized(M, K, 1), quantized(N, K, 2)]
    const [aScales, bScales] = [readScales(blocked(a, M, K), M, K), readScales(blocked(b, N, K), N, K)]
    const code = (codes: Uint8Array, at: number) => E2M1[(codes[at >> 1]! >> (4 * (at & 1))) & 15]!
    const alpha = a.globalScale * b.globalScale
    const product = new Float32Array(M * N)
    for (let m = 0; m < M; m++) {
      for (let n = 0; n < N; n++) {
        let sum = 0
        for (let k = 0; k < K; k++) {
          const scale = aScales[(m * K + k) >> 4]! * bScales[(n * K + k) >> 4]!
          sum += code(a.codes, m * K + k) * code(b.codes, n * K + k) * scale
        }
        product[m * N + n] = alpha * sum
      }
    }
    const x = new Float32Array(M * K)
    ops.dequantizeNvfp4!(x, a.codes, a.scales, M, K, { globalScale: a.globalScale })
    const expected = new Float32Array(M * N)
    ops.linearReference!(expected, x, { storage: 'nvfp4', rows: N, cols: K, ...b }, M, {})
    expectClose(product, expected, 1e-6, 1e-6)
  }
})
