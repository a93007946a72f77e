/**
 * Attention at Qwen3-4B's shape (Q 32, KV 8, D 128): GFLOP/s of prefill and its gradients, GB/s of decode.
 *
 *   npx tsx benchmarks/ops/attention.ts [threads] [isa]
 *
 * A multiply-add counts as two operations and only scores that the causal mask leaves count: 4 · D · Q · T (T + 1) / 2
 * forward, 10 · … for the five products that gradients need (the kernels compute seven). Decode reads 2 · KV · D values a
 * position, from as many caches in turn as 36 layers would have, up to 1 GiB, so that no run finds its own in a cache
 * level. `read` is one thread's memchr over 1 GiB, for comparison with decode on one thread.
 */
import { attention, attentionBackward, attentionInputs } from '../../test/support/attention-ops'
import { ops, seededValues, type OpOptions } from '../../test/support/native-ops'

const [Q, KV, D] = [32, 8, 128]
const options: OpOptions = { threads: Number(process.argv[2] ?? 1), isa: process.argv[3] as OpOptions['isa'] }
if (!options.isa) delete options.isa

/** The median of five runs after one that warms up, in seconds. */
function seconds(run: () => void): number {
  const times = Array.from({ length: 6 }, () => {
    const start = performance.now()
    run()
    return (performance.now() - start) / 1000
  })
  return times.slice(1).sort((a, b) => a - b)[2]!
}

const print = (name: string, time: number, rate: string) =>
  console.log(`${name.padEnd(28)} ${(time * 1e3).toFixed(3).padStart(10)} ms ${rate.padStart(16)}`)

function prefill(T: number): void {
  const dims = { B: 1, T, Q, KV, D }
  const inputs = attentionInputs(dims)
  const dy = seededValues(inputs.q.length, 3)
  const products = (2 * D * Q * T * (T + 1)) / 2 / 1e9
  const forward = seconds(() => attention(inputs, null, dims, options))
  print(`prefill T ${T}`, forward, `${((2 * products) / forward).toFixed(1)} GFLOP/s`)
  const both = seconds(() => attentionBackward(dy, inputs, null, dims, options))
  print(`gradients T ${T}`, both - forward, `${((5 * products) / (both - forward)).toFixed(1)} GFLOP/s`)
}

function decode(context: number, dtype: 'f32' | 'f16' | 'bf16'): void {
  const pageTokens = 256
  const bytes = dtype === 'f32' ? 4 : 2
  const pageValues = KV * pageTokens * D
  const perLayer = (2 * (context / pageTokens) * pageValues * bytes) | 0
  const layers = Math.min(36, Math.floor(2 ** 30 / perLayer))
  // Values in [0.5, 1) of every dtype; only their bytes matter here.
  const page = (seed: number) =>
    dtype === 'f32'
      ? new Float32Array(pageValues).fill(0.5 + seed / 1e4)
      : new Uint16Array(pageValues).fill((dtype === 'f16' ? 0x3800 : 0x3f00) + (seed % 128))
  const caches = Array.from({ length: 2 * layers }, (_, i) =>
    Array.from({ length: context / pageTokens }, (_, j) => page(i + j)),
  )
  const q = seededValues(Q * D, 1)
  const y = new Float32Array(Q * D)
  const dims = { T: 1, offset: context - 1, Q, KV, D, pageTokens, dtype }
  const time = seconds(() => {
    for (let i = 0; i < layers; i++) ops.attentionCached!(y, q, caches[2 * i], caches[2 * i + 1], dims, options)
  })
  print(`decode S ${context} ${dtype}`, time / layers, `${((perLayer * layers) / time / 1e9).toFixed(1)} GB/s`)
}

function read(): void {
  const ones = Buffer.alloc(2 ** 30, 1) // zeros would all be one page of the system
  const time = seconds(() => ones.indexOf(2))
  print('read', time, `${(ones.length / time / 1e9).toFixed(1)} GB/s`)
}

console.log(`threads ${options.threads}, ${options.isa ?? 'best instruction set'}`)
for (const T of [512, 2048]) prefill(T)
for (const context of [2048, 8192]) for (const dtype of ['f32', 'f16', 'bf16'] as const) decode(context, dtype)
read()
