/**
 * Needs a CUDA device: `npm run test:gpu`. Products of two NVFP4 operands. What prepares the operands runs on any GPU; the
 * product itself, and models that use it, on Blackwell alone, and elsewhere are refused with the reason.
 */
import type { Qwen3Nvfp4Model, TokenIds } from 'qwen3-nvfp4'
import { fromBf16, toBf16 } from '../support/bf16'
import { describeOnGpu, device, gpuModel, tokensOf, untiedConfig } from '../support/gpu'
import { expectClose, expectSameBytes, ops, seededValues } from '../support/native-ops'
import { gaussian } from '../support/random'
import { expectSimilar } from '../support/similarity'
import { seededWeight, type Weight } from '../support/weights'

const blockedBytes = (rows: number, cols: number) => Math.ceil(rows / 128) * Math.ceil(cols / 4) * 512

/** x in NVFP4 by the codec of the CPU. */
function quantized(x: Uint16Array, T: number, K: number) {
  const wide = fromBf16(x)
  const globalScale = ops.twoLevelGlobalScale!(ops.amax!(wide, T, K)) as number
  const [codes, scales] = [new Uint8Array((T * K) / 2), new Uint8Array((T * K) / 16)]
  ops.quantizeNvfp4!(codes, scales, wide, T, K, { globalScale })
  const blocked = new Uint8Array(blockedBytes(T, K / 16))
  ops.toBlockedScales!(blocked, scales, T, K / 16)
  return { codes, scales, blocked, globalScale }
}

function quantizedOnGpu(x: Uint16Array, weight: Weight, T: number) {
  const K = weight.cols
  const [codes, scales] = [new Uint8Array((T * K) / 2), new Uint8Array((T * K) / 16)]
  const blocked = new Uint8Array(blockedBytes(T, K / 16)).fill(0xff)
  const scalars = ops.quantizeW4a4Cuda!(codes, scales, blocked, x, weight, T) as {
    amax: number
    globalScale: number
    alpha: number
    residualAlpha: number
  }
  return { codes, scales, blocked, ...scalars }
}

const onGpu = device === 'cpu' ? describe.skip : describeOnGpu

onGpu('the operands of an NVFP4 product', () => {
  // A row and a column of scales, around a tile of 128 by 4 and a group of 32 rows, and the shapes of Qwen3-4B.
  test.each([
    [1, 1],
    [31, 3],
    [33, 4],
    [127, 5],
    [128, 8],
    [129, 10],
    [300, 9],
    [2560, 608],
    [9728, 160],
  ])('have scales [%i, %i] in the blocked form of the CPU, pads zero', (rows, cols) => {
    const scales = Uint8Array.from(seededValues(rows * cols, rows), (value) => 1 + Math.floor((value + 1) * 63))
    const [gpu, cpu] = [0xff, 0].map((fill) => new Uint8Array(blockedBytes(rows, cols)).fill(fill))
    ops.swizzleScalesCuda!(gpu!, scales, rows, cols)
    ops.toBlockedScales!(cpu!, scales, rows, cols)
    expectSameBytes(gpu!, cpu!)
  })

  test.each([
    [1, 32],
    [9, 96],
    [130, 320],
    [64, 9728],
  ])('have the bytes that the codec of the CPU makes of x [%i, %i]', (T, K) => {
    const weight = seededWeight('nvfp4+residual', 16, K, 1)
    for (const scale of [1, 1e-30, 1e-38, 3e30, 0]) {
      const x = toBf16(gaussian(T * K, 1).map((value, i) => value * scale * (i % 1000 === 17 ? 50 : 1)))
      const { codes, scales, blocked, globalScale } = quantized(x, T, K)
      const gpu = quantizedOnGpu(x, weight, T)
      expectSameBytes(gpu.codes, codes)
      expectSameBytes(gpu.scales, scales)
      expectSameBytes(gpu.blocked, blocked)
      expect(gpu.globalScale).toBe(globalScale)
      expect(gpu.alpha).toBe(Math.fround(globalScale * Math.fround(weight.globalScale!)))
      expect(gpu.residualAlpha).toBe(Math.fround(globalScale * Math.fround(weight.residualGlobalScale!)))
    }
  })

  test('make the whole product NaN when x is not finite', () => {
    for (const bad of [0x7f80, 0xff80, 0x7fc0]) {
      const x = toBf16(gaussian(9 * 64, 1))
      x[100] = bad
      expect(quantizedOnGpu(x, seededWeight('nvfp4', 16, 64, 1), 9)).toMatchObject({ alpha: NaN, globalScale: 1 })
    }
  })
})

/** Whether this GPU has the product; else the reason why not. */
async function refusal(): Promise<string | undefined> {
  try {
    await (await gpuModel({ compute: 'w4a4' })).dispose()
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

onGpu('linearW4a4', () => {
  let refused: string | undefined
  beforeAll(async () => {
    refused = await refusal()
  })

  test('refuses shapes that cuBLASLt does not take, and dense weights', () => {
    const linear = (weight: Weight) => () =>
      ops.linearW4a4Cuda!(new Float32Array(9 * weight.rows), new Uint16Array(9 * weight.cols), weight, 9, false)
    const message = (shape: string) =>
      `compute 'w4a4' needs weights [N, K] with N a multiple of 16 and K of 32, and a weight is ${shape}; use 'w4a16'`
    for (const [N, K] of [
      [24, 64],
      [16, 48],
    ] as const) {
      const error = expect.objectContaining({ code: 'UNSUPPORTED', message: message(`[${N}, ${K}]`) })
      expect(linear(seededWeight('nvfp4', N, K, 1))).toThrow(error)
    }
    expect(linear(seededWeight('bf16', 16, 64, 1))).toThrow('needs NVFP4 weights')
  })

  /**
   * f32 sums of exact products, whose order and truncation nothing documents: 2^-12 of the root mean square of a sum; a bf16
   * result half a unit in the last place, 2^-8, once a product.
   */
  test('is the product of x rounded to NVFP4, or is refused by cuBLASLt', () => {
    for (const [T, N, K] of [
      [9, 16, 32],
      [33, 144, 320],
      [130, 512, 2560],
    ] as const) {
      for (const kind of ['nvfp4', 'nvfp4+residual'] as const) {
        const weight = seededWeight(kind, N, K, N)
        const x = toBf16(gaussian(T * K, 1))
        const rounded = new Float32Array(T * K)
        const { codes, scales, globalScale } = quantized(x, T, K)
        ops.dequantizeNvfp4!(rounded, codes, scales, T, K, { globalScale })
        const expected = new Float32Array(T * N)
        ops.linearReference!(expected, rounded, weight, T, { threads: 16 })
        for (const [y, accumulate] of [
          [new Float32Array(T * N).fill(NaN), false],
          [new Uint16Array(T * N).fill(0x7fc0), false],
          [new Float32Array(T * N), true],
        ] as const) {
          const run = () => ops.linearW4a4Cuda!(y, x, weight, T, accumulate)
          if (refused) {
            expect(run).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }))
            continue
          }
          run()
          const rms = Math.sqrt(expected.reduce((sum, value) => sum + value * value, 0) / expected.length)
          const actual = y instanceof Float32Array ? y : fromBf16(y)
          const bf16 = y instanceof Float32Array ? 0 : 2 ** -7
          expectClose(actual, expected, (2 ** -12 + (kind === 'nvfp4' ? 0 : bf16)) * rms, bf16 + 1e-6)
        }
      }
    }
  })
})

onGpu("compute 'w4a4'", () => {
  const logitsOf = async (model: Qwen3Nvfp4Model, ids: TokenIds, options: object = {}) => {
    await using result = await model.forward(ids, { logits: 'all', ...options })
    return result.logits.toFloat32Array()
  }

  test('is refused with the reason where there are no FP4 tensor cores, and else computes nearly the same', async () => {
    const refused = await refusal()
    if (refused) {
      expect(refused).toMatch(
        /^compute 'w4a4' needs a GPU of compute capability 10\.0 or newer \(Blackwell\), .*, and cuda:0, .+, has \d\.\d; use 'w4a16'$/,
      )
      await expect(gpuModel({ compute: 'w4a4' })).rejects.toMatchObject({ code: 'UNSUPPORTED' })
      return
    }
    await using w4a4 = await gpuModel({ compute: 'w4a4' })
    await using w4a16 = await gpuModel({ compute: 'w4a16' })
    // 20.4 dB, or 9.5 %, of every product's input is lost: of the residual stream of six such branches about 16 %, and of
    // the logits as much as 19 %.
    const bounds = { relativeError: 0.3, cosine: 0.95 }
    for (const T of [9, 64, 130]) {
      const ids = tokensOf(T)
      const [actual, expected] = [await logitsOf(w4a4, ids), await logitsOf(w4a16, ids)]
      expectSimilar(`logits of ${T} tokens`, actual, expected, bounds)
      expect(Buffer.from(actual.buffer).equals(Buffer.from(expected.buffer))).toBe(false)
      expectSameBytes(await logitsOf(w4a4, ids), actual)
    }
    // Few tokens, and what is recorded for training, are computed as ever.
    expectSameBytes(await logitsOf(w4a4, tokensOf(8)), await logitsOf(w4a16, tokensOf(8)))
    const gradient = { gradient: true }
    expectSameBytes(await logitsOf(w4a4, tokensOf(64), gradient), await logitsOf(w4a16, tokensOf(64), gradient))
    await expect(gpuModel({ compute: 'w4a4' }, untiedConfig)).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      message: expect.stringMatching(/lm_head\.weight is \[1001, 256\]/),
    })
  })
})
