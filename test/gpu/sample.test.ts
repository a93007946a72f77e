/** Needs a CUDA device: `npm run test:gpu`. */
import { ops, seededValues } from '../support/native-ops'
import type { Sampled, SampleOptions } from '../support/sample-ops'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

interface CudaSampled extends Sampled {
  badId: number
  badValue: number
  position: number
  nextId: number
}

interface Call {
  position?: number
  history?: number[]
  blocks?: number
  slots?: number
}

/** 0: as many as the device has. Tools that follow every access cannot wait at barriers of several (test:gpu:sanitize). */
const defaultBlocks = Number(process.env['QN_SAMPLE_BLOCKS'] ?? 0)

function onCuda(logits: Float32Array, options: SampleOptions, call: Call = {}): CudaSampled & { seen: Uint8Array } {
  const seen = new Uint8Array(logits.length)
  for (const id of call.history ?? []) seen[id] = 1
  const { position = 1, blocks = defaultBlocks, slots = 1 } = call
  const result: CudaSampled = ops.sampleTokenCuda!(logits, logits.length, seen, position, options, { blocks, slots })
  return { ...result, seen }
}

const onCpu = (logits: Float32Array, options: SampleOptions, { position = 1, history = [] }: Call = {}): Sampled =>
  ops.sampleToken!(logits, logits.length, Int32Array.from(history), position, options)

function expectSame(logits: Float32Array, options: SampleOptions, call: Call = {}) {
  const [cuda, cpu] = [onCuda(logits, options, call), onCpu(logits, options, call)]
  expect(cuda).toMatchObject({ id: cpu.id, nextId: cpu.id, badId: -1, position: call.position ?? 1 })
  expect(cuda.seen[cpu.id]).toBe(1)
  expect(cuda.top.map(({ id }) => id)).toEqual(cpu.top.map(({ id }) => id))
  // Exponentials within 2^-21 and a logarithm of their f32 sum; a large log-probability has its own last bit.
  for (const [a, b] of [[cuda, cpu], ...cuda.top.map((token, i) => [token, cpu.top[i]!])] as const) {
    expect(Math.abs(a!.logprob - b!.logprob)).toBeLessThanOrEqual(4e-6 + 3e-7 * Math.abs(b!.logprob))
  }
}

/** Sums of three uniform values: nearly normal, so that a few logits stand out as a model's do. */
function logitsOf(V: number, seed: number, scale: number): Float32Array {
  const parts = [1, 2, 3].map((part) => seededValues(V, 10 * seed + part, scale))
  return parts[0]!.map((value, id) => value + parts[1]![id]! + parts[2]![id]!)
}

const SIZES = [1, 2, 31, 33, 1000, 5000, 32 * 1024 + 1, 151936]
const MODEL_SIZE = 151936

const OPTIONS: [name: string, options: SampleOptions][] = [
  ['greedy', {}],
  ['temperature 1', { temperature: 1 }],
  ['temperature 0.1', { temperature: 0.1 }],
  ['a temperature near 0', { temperature: 1e-40 }],
  ['top-k 1', { temperature: 1, topK: 1 }],
  ['top-k 20', { temperature: 0.6, topK: 20 }],
  ['top-k 3000', { temperature: 2, topK: 3000 }],
  ['top-p 0.95', { temperature: 1, topP: 0.95 }],
  ['top-p 1e-6', { temperature: 1, topP: 1e-6 }],
  ['min-p', { temperature: 1.5, minP: 0.05 }],
  ["Qwen3's own", { temperature: 0.6, topK: 20, topP: 0.95 }],
  ['all filters', { temperature: 1.3, topK: 200, topP: 0.8, minP: 0.01, repetitionPenalty: 1.3, topLogprobs: 5 }],
  ['log-probabilities of a greedy token', { topLogprobs: 20, repetitionPenalty: 0.7 }],
]

withCuda(`sampling on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  describe.each(OPTIONS)('with %s', (_, options) => {
    it.each(SIZES)('chooses what the CPU chooses of %i logits', (V) => {
      for (let position = 1; position <= 12; position++) {
        const scale = [0.01, 1, 5, 30][position % 4]!
        const history = [0, V - 1, V >> 1, V >> 2]
        expectSame(logitsOf(V, position, scale), { ...options, seed: position }, { position, history })
      }
    })

    it('chooses what the CPU chooses of equal logits, of ties and of zeros with either sign', () => {
      const flat = new Float32Array(5000).fill(2)
      const ties = logitsOf(5000, 3, 4).map(Math.round)
      const zeros = flat.map((_, id) => (id % 3 ? 0 : -0))
      for (const logits of [flat, ties, zeros]) {
        for (let position = 1; position <= 4; position++) {
          expectSame(logits, { ...options, seed: 9 }, { position, history: [1, 2, 3, 4000] })
        }
      }
    })

    it('chooses the same with any number of blocks', () => {
      for (const V of [40, 70000, MODEL_SIZE]) {
        const logits = logitsOf(V, 5, 3)
        const chosen = [0, 1, 2, 4, 8].map((blocks) => onCuda(logits, { ...options, seed: 3 }, { blocks }).id)
        expect(new Set(chosen).size).toBe(1)
      }
    })
  })

  it('draws the distribution: every id of a small vocabulary as often as the CPU', () => {
    const logits = logitsOf(300, 4, 1)
    const ids = (draw: typeof onCpu) =>
      Array.from({ length: 300 }, (_, i) => draw(logits, { temperature: 1, seed: 6 }, { position: i + 1 }).id)
    expect(ids(onCuda)).toEqual(ids(onCpu))
  })

  it('reports a thousand log-probabilities, and never more than there are', () => {
    expectSame(logitsOf(MODEL_SIZE, 8, 4), { topLogprobs: 1000 })
    expectSame(logitsOf(7, 8, 4), { topLogprobs: 1000, temperature: 1 })
    expect(() => onCuda(logitsOf(5000, 8, 4), { topLogprobs: 1025 })).toThrow(
      'at most 1024 log-probabilities, not 1025',
    )
  })

  it('keeps logits at the ends of their range apart from infinities', () => {
    const max = 3.4028234663852886e38
    expectSame(Float32Array.of(-max, max, 1), { temperature: 1, topP: 0.9 })
    expectSame(Float32Array.of(-max, -max), { temperature: 2 })
    expectSame(Float32Array.of(3, 1), { repetitionPenalty: 1e-38 }, { history: [1] })
  })

  it('remembers the new id for the next penalty', () => {
    const logits = Float32Array.of(3, 2.9, 1)
    const { id, seen } = onCuda(logits, { repetitionPenalty: 2 })
    expect([id, ...seen]).toEqual([0, 1, 0, 0])
    expect(onCuda(logits, { repetitionPenalty: 2 }, { history: [id] }).id).toBe(1)
  })

  it('marks the ids of a prompt', () => {
    const seen = new Uint8Array(600)
    const ids = Int32Array.from({ length: 700 }, (_, i) => (i * 7) % 300)
    ops.markSeenCuda!(seen, ids)
    expect([...seen]).toEqual(Array.from(seen, (_, id) => (id < 300 ? 1 : 0)))
  })

  it('writes the slot of its position', () => {
    const logits = logitsOf(5000, 2, 3)
    for (let position = 5; position < 9; position++) {
      expectSame(logits, { temperature: 1, topLogprobs: 3 }, { position, slots: 3 })
    }
  })

  it.each([NaN, Infinity, -Infinity])('says which logit is %d, the first of several, and chooses nothing', (bad) => {
    for (const [V, at] of [
      [50, 17],
      [MODEL_SIZE, 99999],
    ] as const) {
      const logits = logitsOf(V, 1, 2)
      logits[at] = bad
      logits[V - 1] = NaN
      for (const options of [{}, { temperature: 1, topK: 4, topLogprobs: 2 }]) {
        const result = onCuda(logits, options)
        expect(result).toMatchObject({ badId: at, badValue: bad, nextId: 0, position: 1 })
        expect(result.seen.every((byte) => byte === 0)).toBe(true)
      }
    }
  })
})
