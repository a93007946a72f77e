import {
  ReferenceAdamw,
  bytesOf,
  copyState,
  decode,
  firstMoment,
  makeState,
  secondMoment,
  takeStep,
  type Moments,
  type Storage,
  type WeightMode,
} from '../support/adamw-state'
import { isaLevels } from '../support/isa-levels'
import { expectClose, ops, seededValues, type OpOptions } from '../support/native-ops'

const MODES: WeightMode[] = ['nvfp4', 'nvfp4+residual', 'bf16', 'fp32']
const MOMENTS: Moments[] = ['nvfp4', 'int8', 'bf16', 'fp32']
const KINDS: { storage: Storage; mode: WeightMode; moments: Moments }[] = [
  ...MODES.flatMap((mode) => MOMENTS.map((moments) => ({ storage: 'nvfp4' as const, mode, moments }))),
  { storage: 'fp32', mode: 'fp32', moments: 'nvfp4' },
  { storage: 'bf16', mode: 'fp32', moments: 'int8' },
]

/** Gradients whose size differs by row, column and step, around 1e-3. */
function gradient(N: number, K: number, step: number): Float32Array {
  const g = seededValues(N * K, 1000 + step, 1e-3)
  for (let i = 0; i < g.length; i++) g[i]! *= 2 ** ((i % 5) - 2) * (1 + (Math.floor(i / K) % 3))
  return g
}

describe('adamw with everything in f32', () => {
  it('equals torch AdamW over five steps with weight decay', () => {
    const [N, K] = [5, 37]
    const x = seededValues(N * K, 1, 0.1)
    const reference = new ReferenceAdamw(Float64Array.from(x))
    const state = makeState(N, K, x, { storage: 'fp32', moments: 'fp32' })
    for (let t = 1; t <= 5; t++) {
      const g = gradient(N, K, t)
      const rms = reference.step(g, t, 1e-3, 0.01)
      const result = takeStep(state, g, t, { lr: 1e-3, keep: 1 - 1e-3 * 0.01 })
      expectClose([result.updateRms], [rms], 0, 1e-5)
    }
    // Five updates of at most 1e-3, each with a few roundings of 6e-8, on weights of 0.1.
    expectClose(state.dense, reference.x, 1e-7)
  })

  it('follows the reference with f32 masters behind NVFP4 codes, whose codes stay nearest', () => {
    const [N, K] = [4, 64]
    const state = makeState(N, K, seededValues(N * K, 2, 300), { mode: 'fp32', moments: 'fp32' })
    const reference = new ReferenceAdamw(Float64Array.from(state.master))
    for (let t = 1; t <= 5; t++) {
      const g = gradient(N, K, t)
      reference.step(g, t, 2)
      takeStep(state, g, t, { lr: 2 })
    }
    expectClose(state.master, reference.x, 1e-3, 1e-5)
    const values = decode(state.codes, state.scales)
    let squares = 0
    let sum = 0
    for (let i = 0; i < values.length; i++) {
      squares += (values[i]! - reference.x[i]!) ** 2
      sum += reference.x[i]! ** 2
    }
    expect(Math.sqrt(squares / sum)).toBeLessThan(0.12)
  })
})

describe('adamw is the same', () => {
  const [N, K] = [21, 304]
  const run = (kinds: (typeof KINDS)[number], chunkRows: number, on: OpOptions): Buffer => {
    const state = makeState(N, K, seededValues(N * K, 3, kinds.storage === 'nvfp4' ? 300 : 0.1), kinds)
    for (let t = 1; t <= 3; t++) {
      takeStep(state, gradient(N, K, t), t, { lr: kinds.storage === 'nvfp4' ? 3 : 1e-3, chunkRows, seed: 11 }, on)
    }
    return bytesOf(state)
  }

  it.each(KINDS)('for any rows at a time, threads and instruction set: $storage $mode $moments', (kinds) => {
    const expected = run(kinds, N, { isa: 'portable' })
    for (const isa of isaLevels) expect(run(kinds, N, { isa }).equals(expected)).toBe(true)
    for (const chunkRows of [1, 7, 16]) expect(run(kinds, chunkRows, {}).equals(expected)).toBe(true)
    for (const threads of [2, 3]) expect(run(kinds, N, { threads }).equals(expected)).toBe(true)
  })

  it('but not for another seed, parameter or step', () => {
    const outcomes = [{}, { seed: 2 }, { parameter: 1 }].map((options) => {
      const state = makeState(N, K, seededValues(N * K, 3, 300), {})
      takeStep(state, gradient(N, K, 1), 1, { lr: 3, ...options })
      return bytesOf(state).toString('latin1')
    })
    expect(new Set(outcomes).size).toBe(3)
  })
})

describe('a zero update', () => {
  it.each(MODES)('changes no bit of weights %s, whatever wrote them', (mode) => {
    const [N, K] = [16, 256]
    const state = makeState(N, K, seededValues(N * K, 4, 300), { mode })
    takeStep(state, gradient(N, K, 1), 1, { lr: 40 })
    for (let i = 0; i < 64; i++) state.codes[i]! |= i % 2 ? 8 : 128 // negative zeros among them
    if (mode === 'nvfp4') state.scales.set([0, 1, 2, 16, 126], 8)
    const before = copyState(state)
    const result = takeStep(state, gradient(N, K, 2), 2, { lr: 0 })
    for (const name of ['codes', 'scales', 'residualCodes', 'residualScales', 'master'] as const) {
      expect(Buffer.from(state[name].buffer).equals(Buffer.from(before[name].buffer))).toBe(true)
    }
    expect(result.changedCodes).toBe(0)
  })

  it.each(['fp32', 'bf16', 'fp16'] as const)(
    'changes no bit of dense weights in %s, not of a negative zero',
    (storage) => {
      const [N, K] = [4, 37]
      const state = makeState(N, K, new Float32Array(N * K), { storage, moments: 'fp32' })
      const bits = new Uint16Array(state.dense.buffer)
      for (let i = 0; i < bits.length; i++) bits[i] = [0x8000, 0x0000, 0x3c01, 0xbf80, 0x0001, 0x83ff][i % 6]!
      const before = bits.slice()
      takeStep(state, gradient(N, K, 1), 1, { lr: 0 })
      expect(bits).toEqual(before)
    },
  )

  it.each(['nvfp4', 'int8', 'bf16', 'fp32'] as const)('changes no bit of a second moment in %s', (moments) => {
    const [N, K] = [16, 256]
    const state = makeState(N, K, seededValues(N * K, 4, 300), { moments })
    for (let t = 1; t <= 6; t++) takeStep(state, gradient(N, K, t), t, { lr: 1 })
    const before = copyState(state)
    takeStep(state, gradient(N, K, 7), 7, { lr: 1, rates: { a: 0.1, b: 0 } })
    for (const name of ['vValues', 'vScales', 'vRows'] as const) {
      expect(Buffer.from(state[name].buffer).equals(Buffer.from(before[name].buffer))).toBe(true)
    }
  })

  it.each([1e-5, 1e-4, 1e-3])('of nearly zero size (%s of the spread) changes at most 1 %% of the codes', (size) => {
    const [N, K] = [64, 512]
    const state = makeState(N, K, seededValues(N * K, 5, 300), {})
    const spread = 300 / Math.sqrt(3)
    // The first step of AdamW moves everything by lr.
    const { changedCodes } = takeStep(state, gradient(N, K, 1), 1, { lr: size * spread })
    expect(changedCodes / (N * K)).toBeLessThan(0.01)
    if (size >= 1e-4) expect(changedCodes).toBeGreaterThan(0)
  })
})

describe('stochastic rounding', () => {
  // Every element holds 2 under scale 1 with a 6 in its block, and moves by -p: code 2 (step 1 above, ½ below).
  it.each([0.25, 1e-2, 1e-4])('moves weights by the update on average, at probability %s a code', (p) => {
    const [N, K] = [256, 512]
    const x = Float32Array.from({ length: N * K }, (_, i) => (i % 16 === 0 ? 6 : 2))
    for (const sign of [1, -1]) {
      const state = makeState(N, K, x, { moments: 'fp32' })
      const step = sign < 0 ? 1 : 0.5
      const g = Float32Array.from({ length: N * K }, (_, i) => (i % 16 === 0 ? 0 : sign))
      takeStep(state, g, 1, { lr: p * step, eps: 1e-30, seed: 7 })
      const values = decode(state.codes, state.scales)
      let moved = 0
      for (let i = 0; i < values.length; i++) moved += (x[i]! - values[i]!) * sign
      const draws = (N * K * 15) / 16
      const error = 4 * Math.sqrt((p * (1 - p)) / draws) * step
      expect(Math.abs(moved / draws - p * step)).toBeLessThan(error)
    }
  })

  it('neither drifts up nor down at probability 1e-5', () => {
    const [N, K] = [1024, 1024]
    const state = makeState(N, K, new Float32Array(N * K).fill(2), { moments: 'fp32' })
    state.codes.fill(0x44) // 2 under scale 1, and a 6 that stays in every block
    for (let b = 0; b < state.scales.length; b++) state.codes[8 * b] = 0x47
    state.scales.fill(0x38)
    const gradientOf = (sign: number) => {
      const g = new Float32Array(N * K).fill(sign)
      for (let i = 0; i < g.length; i += 16) g[i] = 0
      return g
    }
    const flips = [1, -1].map((sign) => {
      const copy = copyState(state)
      const lr = 1e-5 * (sign > 0 ? 0.5 : 1) // the step below 2 is ½, above it 1
      return takeStep(copy, gradientOf(sign), 1, { lr, eps: 1e-30 }).changedCodes
    })
    // 9.8 expected of 2^20 · 15/16 draws each; eight random bits would give none or 4096.
    for (const count of flips) expect(Math.abs(count - 9.8)).toBeLessThan(4 * Math.sqrt(9.8))
  })

  it('lets the largest weight of a block grow by the update on average', () => {
    const [N, K] = [256, 1024]
    const x = Float32Array.from({ length: N * K }, (_, i) => (i % 16 === 0 ? 6 : 1))
    const g = Float32Array.from({ length: N * K }, (_, i) => (i % 16 === 0 ? -1 : 0))
    const state = makeState(N, K, x, { moments: 'fp32' })
    takeStep(state, g, 1, { lr: 0.1, eps: 1e-30 })
    const values = decode(state.codes, state.scales)
    let mean = 0
    for (let i = 0; i < values.length; i += 16) mean += values[i]! / (values.length / 16)
    // Scale 1 (then 6) or 1.125 (then 6.75, with probability 0.1 / 0.75), over 16384 blocks.
    expect(Math.abs(mean - 6.1)).toBeLessThan(4 * 0.75 * Math.sqrt((0.1334 * 0.8666) / 16384))
    let others = 0
    for (let i = 1; i < values.length; i += 16) others += values[i]! / (values.length / 16)
    expect(Math.abs(others - 1)).toBeLessThan(0.01)
  })

  it.each(['nvfp4', 'int8', 'bf16'] as const)('stores moments in %s without bias', (moments) => {
    const [N, K] = [64, 1024]
    const row = seededValues(K, 9, 1e-3)
    const g = Float32Array.from({ length: N * K }, (_, i) => row[i % K]!)
    const state = makeState(N, K, new Float32Array(N * K), { storage: 'fp32', moments })
    takeStep(state, g, 1, { lr: 0 })
    const m = firstMoment(state)
    const v = secondMoment(state)
    let [mSum, vSum, mSquares, vSquares] = [0, 0, 0, 0]
    for (let i = 0; i < N * K; i++) {
      const dm = moments === 'bf16' ? m[i]! / g[i]! - 1 : (m[i]! - g[i]!) / Math.sqrt(v[i]!)
      // Octaves are what is rounded. Values far below the row's mean are raised to the floor, which is no rounding.
      const dv = g[i]! ** 2 > 1e-9 ? Math.log2(v[i]! / g[i]! ** 2) : 0
      mSum += moments === 'bf16' ? dm : dm * Math.sign(g[i]!)
      vSum += dv
      mSquares += dm * dm
      vSquares += dv * dv
    }
    expect(Math.abs(mSum)).toBeLessThan(4 * Math.sqrt(mSquares))
    expect(Math.abs(vSum)).toBeLessThan(4 * Math.sqrt(vSquares))
  })
})

describe('the second moment', () => {
  it.each(MOMENTS)('in %s is never zero after the first gradient and keeps the size of the update', (moments) => {
    const [N, K] = [16, 256]
    const state = makeState(N, K, new Float32Array(N * K), { storage: 'fp32', moments })
    const reference = new ReferenceAdamw(new Float64Array(N * K))
    let [packed, exact] = [0, 0]
    for (let t = 1; t <= 200; t++) {
      const g = gradient(N, K, t)
      packed += takeStep(state, g, t, { lr: 1e-3 }).updateRms
      exact += reference.step(g, t, 1e-3)
      if (t === 1 || t === 200) expect(Math.min(...secondMoment(state))).toBeGreaterThan(0)
    }
    expect(packed / exact).toBeGreaterThan(0.9)
    expect(packed / exact).toBeLessThan(1.15)
  })

  it.each(MOMENTS)('in %s follows gradients that grow fourfold as fast as f32 does', (moments) => {
    const [N, K] = [32, 256]
    const state = makeState(N, K, new Float32Array(N * K), { storage: 'fp32', moments })
    const betas: [number, number] = [0.9, 0.99]
    const g = seededValues(N * K, 6, 1e-3)
    const mean = () => secondMoment(state).reduce((sum, v, i) => sum + v / g[i]! ** 2, 0) / (N * K)
    for (let i = 0; i < g.length; i++) g[i] = Math.sign(g[i]!) * (0.5e-3 + Math.abs(g[i]!))
    for (let t = 1; t <= 300; t++) takeStep(state, g, t, { lr: 0, betas })
    expect(mean()).toBeGreaterThan(0.97)
    expect(mean()).toBeLessThan(1.03)
    const doubled = g.map((value) => 2 * value)
    let t = 300
    // f32 covers 1 − 1/e of the jump from 1 to 4 in 100 steps.
    while (mean() < 1 + 3 * (1 - Math.exp(-1))) takeStep(state, doubled, ++t, { lr: 0, betas })
    expect(t - 300).toBeLessThanOrEqual(120)
    expect(t - 300).toBeGreaterThanOrEqual(80)
  })

  it.each(['nvfp4', 'int8'] as const)('in %s survives rows and elements that never had a gradient', (moments) => {
    const [N, K] = [4, 64]
    const state = makeState(N, K, new Float32Array(N * K), { storage: 'fp32', moments })
    const g = seededValues(N * K, 6, 1e-3)
    g.fill(0, 0, K) // row 0 starts late
    g.fill(0, K, K + 20) // and so does a part of row 1
    for (let t = 1; t <= 5; t++) takeStep(state, g, t, { lr: 1e-3 })
    expect(Array.from(state.dense.subarray(0, K + 20)).every((x) => x === 0)).toBe(true)
    const late = seededValues(N * K, 8, 1e-3)
    const { updateRms } = takeStep(state, late, 6, { lr: 1e-3 })
    expect(updateRms).toBeLessThan(2)
    expect(state.dense.every(Number.isFinite)).toBe(true)
    expect(Math.min(...secondMoment(state).subarray(0, K))).toBeGreaterThan(1e-12)
  })

  it('bounds the update of packed moments by 3', () => {
    const [N, K] = [8, 64]
    const state = makeState(N, K, new Float32Array(N * K), { storage: 'fp32' })
    takeStep(state, new Float32Array(N * K).fill(1e-6), 1, { lr: 0 })
    takeStep(state, new Float32Array(N * K).fill(1), 2, { lr: 1, rates: { a: 1, b: 1e-3 } })
    expectClose(state.dense, new Float32Array(N * K).fill(-3), 0)
  })
})

describe('dense 16-bit weights', () => {
  it.each(['bf16', 'fp16'] as const)('in %s move by the update on average', (storage) => {
    const [N, K] = [64, 1024]
    const state = makeState(N, K, new Float32Array(N * K).fill(1), { storage, moments: 'fp32' })
    state.dense.fill(storage === 'bf16' ? 0x3f80 : 0x3c00)
    for (let t = 1; t <= 4; t++) takeStep(state, new Float32Array(N * K).fill(-1), t, { lr: 1e-4, eps: 1e-30 })
    const unit = storage === 'bf16' ? 2 ** -7 : 2 ** -10
    const first = storage === 'bf16' ? 0x3f80 : 0x3c00
    let mean = 0
    for (const bits of state.dense) mean += ((bits - first) * unit) / (N * K)
    expect(Math.abs(mean - 4e-4)).toBeLessThan(4 * Math.sqrt((4e-4 * unit) / (N * K)))
  })

  it('in fp16 round subnormals on their own grid and saturate instead of overflowing', () => {
    const state = makeState(1, 32, new Float32Array(32), { storage: 'fp16', moments: 'fp32' })
    state.dense.fill(0x0003, 0, 16).fill(0x7bff, 16) // 3 · 2^-24 and 65504
    takeStep(state, new Float32Array(32).fill(-1), 1, { lr: 2 ** -24, eps: 1e-30 })
    expect(Array.from(state.dense.subarray(0, 16))).toEqual(new Array(16).fill(0x0004))
    takeStep(state, new Float32Array(32).fill(-1), 2, { lr: 100, eps: 1e-30 })
    expect(Array.from(state.dense.subarray(16))).toEqual(new Array(16).fill(0x7bff))
  })
})

describe('rows in between', () => {
  it.each(['nvfp4', 'int8', 'bf16', 'fp32'] as const)('stored in %s come back without bias', (format) => {
    const [N, K] = [3, 512]
    const x = seededValues(N * K, 12, 1e-5)
    const sums = new Float64Array(N * K)
    const draws = 256
    for (let step = 0; step < draws; step++) {
      const view = {
        format,
        values: new Uint8Array(N * K * 4),
        scales: new Uint8Array((N * K) / 16),
        rows: new Float32Array(N),
        K,
        rowBegin: 0,
        rowCount: N,
        step,
      }
      const back = new Float32Array(N * K)
      ops.storeRows!(view, x, {})
      ops.loadRows!(view, back, {})
      for (let i = 0; i < back.length; i++) sums[i]! += back[i]! / draws
    }
    // One rounding of NVFP4 has a standard deviation of at most one scale: 5 standard errors.
    expectClose(sums, x, (5 * 1.125e-5) / 6 / Math.sqrt(draws))
  })

  it('halve their scales exactly, except odd ones that are too small', () => {
    const scales = Uint8Array.from({ length: 127 }, (_, code) => code)
    ops.halveScales!(scales)
    for (let code = 16; code < 127; code++) expect(scales[code]).toBe(code - 8)
    expect(Array.from(scales.subarray(0, 16))).toEqual([0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8])
  })

  it('give a norm that is not finite when an element is not', () => {
    const g = seededValues(2 * 40, 13)
    const squares = (x: Float32Array) => x.reduce((sum, value) => sum + value * value, 0)
    expectClose(ops.rowSquares!(g, 40, {}), [squares(g.subarray(0, 40)), squares(g.subarray(40))], 0, 1e-12)
    g[39] = Infinity
    g[79] = NaN
    expect(Array.from(ops.rowSquares!(g, 40, {})).every((value) => !Number.isFinite(value))).toBe(true)
  })
})

describe('adamw refuses', () => {
  it('a packed state whose rows are not blocks of 16', () => {
    const state = makeState(2, 24, new Float32Array(48), { storage: 'fp32', moments: 'fp32' })
    state.moments = 'nvfp4'
    expect(() => takeStep(state, new Float32Array(48), 1, { lr: 0 })).toThrow(
      'Expected a multiple of 16 columns for a packed state but received 24',
    )
  })

  it('rows longer than its scratch', () => {
    const state = makeState(1, 131072 + 16, new Float32Array(131072 + 16), { storage: 'fp32' })
    expect(() => takeStep(state, new Float32Array(131072 + 16), 1, { lr: 0 })).toThrow(
      'Expected 1 to 131072 columns for adamw but received 131088',
    )
  })
})
