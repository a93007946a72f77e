/** Needs a CUDA device: `npm run test:gpu`. */
import {
  bytesOf,
  copyState,
  makeState,
  takeStep,
  type AdamwState,
  type Moments,
  type Storage,
  type WeightMode,
} from '../support/adamw-state'
import { ops, expectSameBytes, seededValues } from '../support/native-ops'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

const MODES: WeightMode[] = ['nvfp4', 'nvfp4+residual', 'bf16', 'fp32']
const MOMENTS: Moments[] = ['nvfp4', 'int8', 'bf16', 'fp32']
const KINDS: { storage: Storage; mode: WeightMode; moments: Moments }[] = [
  ...MODES.flatMap((mode) => MOMENTS.map((moments) => ({ storage: 'nvfp4' as const, mode, moments }))),
  ...(['fp32', 'fp16', 'bf16'] as const).flatMap((storage) =>
    MOMENTS.map((moments) => ({ storage, mode: 'fp32' as const, moments })),
  ),
]
const STEPS = [1e-3, 1, 0, 1e-12, 300, 2e-3]

/** Gradients of mixed sizes, exact in bf16, some of them zero. */
function gradient(N: number, K: number, step: number): Float32Array {
  const g = seededValues(N * K, 1000 + step, STEPS[step - 1]!)
  for (let i = 0; i < g.length; i++) g[i]! *= i % 11 === 0 ? 0 : 2 ** ((i % 7) - 3)
  const bits = new Uint32Array(g.buffer)
  for (let i = 0; i < bits.length; i++) bits[i]! &= 0xffff0000
  return g
}
const toBf16 = (x: Float32Array) =>
  Uint16Array.from(new Uint32Array(x.buffer, x.byteOffset, x.length), (bits) => bits >>> 16)

/** takeStep() on the device, all rows at once unless told otherwise. */
function takeCudaStep(state: AdamwState, g: Float32Array | Uint16Array, step: number, options: Options) {
  const { N, K } = state
  const { chunkRows = N, lr, keep = 1, rates } = options
  const total = { updateSquares: 0, changedCodes: 0, saturated: 0 }
  for (let rowBegin = 0; rowBegin < N; rowBegin += chunkRows) {
    const rowCount = Math.min(chunkRows, N - rowBegin)
    const result = ops.adamwCuda!({
      ...state,
      g: g.subarray(rowBegin * K, (rowBegin + rowCount) * K),
      rowBegin,
      rowCount,
      gradientScale: 0.7,
      a: rates?.a ?? (1 - 0.9) / (1 - 0.9 ** step),
      b: rates?.b ?? (1 - 0.999) / (1 - 0.999 ** step),
      eps: 1e-8,
      rate: lr,
      keep,
      seed: 11,
      parameter: 3,
      step,
    })
    total.updateSquares += result.updateSquares
    total.changedCodes += result.changedCodes
    total.saturated += result.saturated
  }
  return total
}
interface Options {
  lr: number
  keep?: number
  chunkRows?: number
  rates?: { a: number; b: number }
}

/** Steps both and compares every byte and total after each. */
function expectSameSteps(
  N: number,
  K: number,
  kinds: (typeof KINDS)[number],
  { bf16 = false, spread = 300, chunkRows = N, steps = STEPS.length } = {},
) {
  const cpu = makeState(N, K, seededValues(N * K, 3, kinds.storage === 'nvfp4' ? spread : 0.1), kinds)
  const cuda = copyState(cpu)
  for (let t = 1; t <= steps; t++) {
    const g = gradient(N, K, t)
    // One-level weights decay in every element; two-level ones do not (keep = 1).
    const options = { lr: kinds.storage === 'nvfp4' ? spread / 100 : 1e-3, keep: t % 2 ? 1 : 0.999 }
    const wanted = takeStep(cpu, g, t, { ...options, seed: 11, parameter: 3, gradientScale: 0.7 })
    const got = takeCudaStep(cuda, bf16 ? toBf16(g) : g, t, { ...options, chunkRows })
    const label = `[${N}, ${K}] step ${t}`
    for (const name of Object.keys(cpu) as (keyof AdamwState)[]) {
      const [a, b] = [cpu[name], cuda[name]]
      if (!ArrayBuffer.isView(a) || !ArrayBuffer.isView(b)) continue
      const same = Buffer.from(a.buffer).equals(Buffer.from(b.buffer))
      if (!same) throw new Error(`${label}: ${name} differs`)
    }
    expect([label, got.changedCodes, got.saturated]).toEqual([label, wanted.changedCodes, wanted.saturated])
    // f32 sums of a block.
    expect(Math.abs(got.updateSquares - wanted.updateSquares)).toBeLessThanOrEqual(1e-6 * wanted.updateSquares)
  }
}

withCuda(`adamw on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each(KINDS)('gives the bytes of the CPU after every step: $storage $mode $moments', (kinds) => {
    for (const [N, K] of [
      [3, 16],
      [1, 48],
      [64, 304],
      [3, 2560],
    ] as const) {
      expectSameSteps(N, K, kinds)
      expectSameSteps(N, K, kinds, { bf16: true })
    }
  })

  it.each(['nvfp4', 'nvfp4+residual'] as const)('gives them for the rows of Qwen3-4B: %s', (mode) => {
    const kinds = { storage: 'nvfp4', mode, moments: 'nvfp4' } as const
    for (const [N, K] of [
      [64, 2560],
      [3, 4096],
      [1, 9728],
      [3, 9728],
    ] as const) {
      expectSameSteps(N, K, kinds)
      expectSameSteps(N, K, kinds, { bf16: true, chunkRows: 2 })
    }
  })

  it.each(['nvfp4', 'nvfp4+residual'] as const)('gives them where two-level scales saturate: %s', (mode) => {
    // 2600 is near 448 · 6 = 2688.
    expectSameSteps(64, 304, { storage: 'nvfp4', mode, moments: 'nvfp4' }, { spread: 2600 })
  })

  // Of 132 processors: rows that a warp, two and four take one after another.
  it.each([
    { N: 2200, K: 48, mode: 'nvfp4', moments: 'nvfp4' },
    { N: 2200, K: 48, mode: 'nvfp4+residual', moments: 'nvfp4' },
    { N: 2200, K: 48, mode: 'fp32', moments: 'int8' },
    { N: 2200, K: 1024, mode: 'nvfp4', moments: 'nvfp4' },
    { N: 1100, K: 4096, mode: 'nvfp4+residual', moments: 'nvfp4' },
  ] as const)('gives them for more rows than warps: [$N, $K] $mode $moments', ({ N, K, mode, moments }) => {
    expectSameSteps(N, K, { storage: 'nvfp4', mode, moments }, { bf16: true, steps: 3 })
  })

  it('gives them for dense vectors of any length', () => {
    for (const K of [1, 15, 37, 128, 2560, 5000]) {
      for (const storage of ['fp32', 'fp16', 'bf16'] as const) {
        for (const moments of ['bf16', 'fp32'] as const) {
          expectSameSteps(K === 37 ? 3 : 1, K, { storage, mode: 'fp32', moments })
        }
      }
    }
  })

  it('is the same for any rows at a time, and twice', () => {
    const [N, K] = [21, 304]
    const run = (chunkRows: number) => {
      const state = makeState(N, K, seededValues(N * K, 3, 300), {})
      const squares = [1, 2, 3].map((t) => takeCudaStep(state, gradient(N, K, t), t, { lr: 3, chunkRows }))
      return { bytes: bytesOf(state).toString('latin1'), squares }
    }
    const first = run(N)
    expect(run(N)).toEqual(first)
    for (const chunkRows of [1, 8]) expect(run(chunkRows).bytes).toBe(first.bytes)
  })

  it('changes no weight when the rate is zero', () => {
    const state = makeState(8, 304, seededValues(8 * 304, 4, 300), { mode: 'nvfp4+residual' })
    takeCudaStep(state, gradient(8, 304, 1), 1, { lr: 40 })
    const before = copyState(state)
    expect(takeCudaStep(state, gradient(8, 304, 2), 2, { lr: 0 }).changedCodes).toBe(0)
    for (const name of ['codes', 'scales', 'residualCodes', 'residualScales'] as const) {
      expect(state[name]).toEqual(before[name])
    }
  })

  it('gives them over many steps, for rows that start late, gradients that jump and long rows', () => {
    for (const [N, K, moments] of [
      [4, 304, 'nvfp4'],
      [4, 304, 'int8'],
      [1, 131072, 'nvfp4'],
    ] as const) {
      const cpu = makeState(N, K, seededValues(N * K, 3, 300), { moments })
      const cuda = copyState(cpu)
      for (let t = 1; t <= 24; t++) {
        const g = seededValues(N * K, 500 + t, t === 9 ? 1e3 : 1e-4)
        if (t < 6) g.fill(0, 0, Math.max(16, (N - 1) * K))
        if (t === 15) g.fill(0)
        const betas: [number, number] = t % 2 ? [0.9, 0.95] : [0.9, 0.999]
        const rates = {
          a: (1 - betas[0]) / (1 - betas[0] ** t),
          b: t === 20 ? 0 : (1 - betas[1]) / (1 - betas[1] ** t),
        }
        const options = { lr: 3, rates }
        takeStep(cpu, g, t, { ...options, seed: 11, parameter: 3, gradientScale: 0.7 })
        takeCudaStep(cuda, g, t, options)
        expect([t, bytesOf(cuda).equals(bytesOf(cpu))]).toEqual([t, true])
      }
    }
  })

  it('refuses columns that are no blocks', () => {
    const state = makeState(2, 24, new Float32Array(48), { storage: 'fp32', moments: 'fp32' })
    state.moments = 'nvfp4'
    expect(() => takeCudaStep(state, new Float32Array(48), 1, { lr: 0 })).toThrow(
      'Expected a multiple of 16 columns for a packed state but received 24',
    )
  })
})

withCuda('rows in between on CUDA', () => {
  it.each(['nvfp4', 'int8', 'bf16', 'fp32'] as const)(
    'are stored in %s and come back with the bytes of the CPU',
    (format) => {
      for (const [N, K] of [
        [1, 16],
        [3, 48],
        [5, 2560],
        [2, 9728],
      ] as const) {
        const x = seededValues(N * K, 21, 1e-4)
        x.fill(0, 0, 16)
        x[K - 1] = -0.25
        const viewOf = () => ({
          format,
          values: new Uint8Array((N + 2) * K * 4),
          scales: new Uint8Array(((N + 2) * K) / 16),
          rows: new Float32Array(N + 2),
          K,
          rowBegin: 1,
          rowCount: N,
          seed: 9,
          parameter: 4,
          step: 7,
        })
        const [cpu, cuda] = [viewOf(), viewOf()]
        ops.storeRows!(cpu, x, {})
        ops.storeRowsCuda!(cuda, x)
        const arrays = ({ values, scales, rows }: typeof cpu) => ({ values, scales, rows })
        expectSameBytes(arrays(cuda), arrays(cpu))
        const [expected, back] = [new Float32Array(N * K), new Float32Array(N * K)]
        ops.loadRows!(cpu, expected, {})
        ops.loadRowsCuda!(cuda, back)
        expectSameBytes(back, expected)
      }
    },
  )
})

withCuda('rowSquares on CUDA', () => {
  it.each([1, 15, 16, 17, 48, 2560, 9729])('gives the bytes of the CPU for %d columns', (K) => {
    for (const N of [1, 3, 64]) {
      const g = seededValues(N * K, 13)
      expect(ops.rowSquaresCuda!(g, K)).toEqual(ops.rowSquares!(g, K, {}))
      const bits = new Uint32Array(g.buffer)
      for (let i = 0; i < bits.length; i++) bits[i]! &= 0xffff0000
      expect(ops.rowSquaresCuda!(toBf16(g), K)).toEqual(ops.rowSquares!(g, K, {}))
    }
  })

  it('is not finite when an element is not', () => {
    const g = seededValues(2 * 40, 13)
    g[39] = Infinity
    g[79] = NaN
    expect(Array.from(ops.rowSquaresCuda!(g, 40) as Float64Array).some(Number.isFinite)).toBe(false)
  })
})
