/**
 * Attention on device 0 at Qwen3-4B's shape (Q 32, KV 8, D 128): TFLOP/s of prefill and its gradients, GB/s of decode,
 * µs of new tokens over a cache, of writing them to it, and of one token's norm, rotation, write and attention at once.
 *
 *   npx tsx benchmarks/ops/attention-cuda.ts [iterations] [whole | packed | decode | paged | write | fused: all]
 *
 * A multiply-add counts as two operations and only scores that the causal mask leaves count: 4 · D · Q · T (T + 1) / 2
 * forward, 10 · … for the five products that gradients need (the kernels compute seven). Decode counts the 4 · KV · D
 * bytes of a position. Buffers of more than 256 MiB are cycled through, so that nothing is found in L2; `copy` is a
 * copy of 1 GiB on the device, bytes read and written.
 */
import { startsOf } from '../../test/support/attention-ops'
import { ops } from '../../test/support/native-ops'

const [Q, KV, D] = [32, 8, 128]
const iterations = Number(process.argv[2] ?? 20)
const only = process.argv[3]
const wanted = (name: string) => !only || only === name

/** The median of five measurements, each the mean of its iterations. */
const median = (measure: () => number) => Array.from({ length: 5 }, measure).sort((a, b) => a - b)[2]!

const print = (name: string, us: number, rate: string) =>
  console.log(`${name.padEnd(24)} ${us.toFixed(1).padStart(10)} µs ${rate}`)

const copyBytes = 2 ** 30
const copyUs = median(() => ops.attentionCopyCudaTime!(copyBytes, iterations) as number)
const copyRate = (2 * copyBytes) / copyUs / 1e3
print('copy', copyUs, `${copyRate.toFixed(0)} GB/s`)

/** A sequence of T tokens, in segments of as many. */
function whole(T: number, segment = T): void {
  const starts = segment === T ? undefined : startsOf(1, Array<number>(T / segment).fill(segment))
  const times = Array.from(
    { length: 5 },
    () => ops.attentionCudaTime!({ B: 1, T, Q, KV, D, starts }, iterations) as { forward: number; backward: number },
  )
  const products = (2 * D * Q * T * (segment + 1)) / 2 / 1e6
  for (const [name, count] of [
    ['forward', 2],
    ['backward', 5],
  ] as const) {
    const us = times.map((time) => time[name]).sort((a, b) => a - b)[2]!
    print(`${name} T ${T}${starts ? ` of ${segment}` : ''}`, us, `${((count * products) / us).toFixed(1)} TFLOP/s`)
  }
}

function decode(T: number, context: number): void {
  const shape = { T, offset: context - T, Q, KV, D, pageTokens: 64 }
  const us = median(() => ops.attentionDecodeCudaTime!(shape, 5 * iterations) as number)
  const rate = (4 * KV * D * context) / us / 1e3
  const share = ((100 * rate) / copyRate).toFixed(0)
  print(`decode T ${T} S ${context}`, us, `${rate.toFixed(0)} GB/s, ${share} % of copy`)
}

function paged(T: number, offset: number): void {
  const us = median(() => ops.attentionPagedCudaTime!({ T, offset, Q, KV, D, pageTokens: 64 }, iterations) as number)
  const products = (4 * D * Q * (T * offset + (T * (T + 1)) / 2)) / 1e6
  print(`paged T ${T} offset ${offset}`, us, `${(products / us).toFixed(1)} TFLOP/s`)
}

function write(T: number): void {
  const shape = { T, offset: 1000, Q, KV, D, pageTokens: 64 }
  const us = median(() => ops.kvCacheWriteCudaTime!(shape, iterations) as number)
  print(`cache write T ${T}`, us, `${((8 * T * KV * D) / us / 1e3).toFixed(0)} GB/s`)
  const fused = median(() => ops.qkNormRopeCacheCudaTime!(shape, iterations) as number)
  print(`norm, rope, write T ${T}`, fused, `${((4 * T * (Q + 2 * KV) * D) / fused / 1e3).toFixed(0)} GB/s`)
}

/** One token from projections to y, in a CUDA graph: in turn, in one launch, and that overlapping the launch before. */
function fused(context: number): void {
  const shape = { offset: context - 1, Q, KV, D, pageTokens: 64 }
  const line = (name: string, us: number) => {
    const rate = (4 * KV * D * context) / us / 1e3
    print(`${name} S ${context}`, us, `${rate.toFixed(0)} GB/s, ${((100 * rate) / copyRate).toFixed(0)} % of copy`)
  }
  line('in turn', ops.attentionDecodeInTurnCudaTime!(shape, iterations) as number)
  for (const overlap of [false, true]) {
    for (const stages of context > 2048 ? [1, 2, 3] : [1]) {
      const us = ops.attentionDecodeFusedCudaTime!({ ...shape, stages, overlap }, iterations) as number
      line(`${overlap ? 'overlapped' : 'fused'}, ${stages} tiles`, us)
    }
  }
}

if (wanted('whole')) for (const T of [2048, 8192]) whole(T)
if (wanted('packed')) for (const segment of [64, 256, 1024]) for (const T of [2048, 8192]) whole(T, segment)
if (wanted('decode')) for (const T of [1, 8]) for (const context of [2048, 8192, 32768]) decode(T, context)
if (wanted('paged')) {
  for (const T of [2048, 8192]) paged(T, 0)
  for (const T of [9, 16, 32, 64, 128, 512]) for (const offset of [512, 2048, 8192, 32768]) paged(T, offset)
}
if (wanted('write')) for (const T of [1, 8, 512, 2048]) write(T)
if (wanted('fused')) for (const context of [16, 512, 2048, 8192, 32768]) fused(context)
