/**
 * Decoding and one training step of a random model in the shape of Qwen3-0.6B on the CPU, with memory against the estimate.
 *
 *   npx tsx benchmarks/model/small-qwen3.ts [threads]
 *
 * Weights are random NVFP4, every optimizer state is NVFP4. The limit of decoding is bytes of weights a token over the
 * machine's read bandwidth, which benchmarks/ops/linear.ts measures.
 */
import { availableParallelism, freemem } from 'node:os'
import { readFileSync } from 'node:fs'
import { Qwen3Nvfp4Model, type MemoryEstimate, type Qwen3Config } from 'qwen3-nvfp4'

const threads = Number(process.argv[2] ?? availableParallelism())
const GB = 1e9

/** config.json of Qwen/Qwen3-0.6B. */
const config: Qwen3Config = {
  hiddenSize: 1024,
  numHiddenLayers: 28,
  numAttentionHeads: 16,
  numKeyValueHeads: 8,
  headDim: 128,
  intermediateSize: 3072,
  vocabSize: 151936,
  ropeTheta: 1e6,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
}

const ids = (count: number, seed: number): number[] =>
  Array.from({ length: count }, (_, i) => ((i + 1) * 7919 * (seed + 1)) % config.vocabSize)
const seconds = async (work: () => Promise<unknown>): Promise<number> => {
  const start = performance.now()
  await work()
  return (performance.now() - start) / 1000
}
/** Highest resident memory of the process since the last reset, bytes (Linux). */
const peakResident = (): number =>
  Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024
const row = (name: string, value: string): void => console.log(`| ${name} | ${value} |`)
const gb = (bytes: number): string => `${(bytes / GB).toFixed(2)} GB`

console.log(`Qwen3-0.6B shape, random NVFP4 weights, ${threads} threads\n\n| what | measured |\n| --- | --- |`)
let model!: Qwen3Nvfp4Model
const made = await seconds(async () => (model = await Qwen3Nvfp4Model.initialize(config, { seed: 1, threads })))
const weights = model.parameterCount * 0.5625
row('parameters', `${(model.parameterCount / 1e6).toFixed(0)} M, ${gb(weights)} in NVFP4`)
row('random weights made in', `${made.toFixed(1)} s`)

const prefill = await seconds(() => model.forward(ids(128, 1)))
row('prefill of 128 tokens', `${(128 / prefill).toFixed(0)} tokens/s`)

const times: number[] = []
let last = performance.now()
for await (const _token of model.generate(ids(16, 2), { maxTokens: 32, stopTokens: [], maxRepeats: 0 })) {
  times.push((performance.now() - last) / 1000)
  last = performance.now()
}
const token = times.slice(4).sort((a, b) => a - b)[Math.floor((times.length - 4) / 2)]!
row('decode, median token', `${(1 / token).toFixed(1)} tokens/s, ${(weights / token / GB).toFixed(1)} GB/s of weights`)

const [B, T] = [1, 128]
const options = { mode: 'training', batch: B, tokens: T, threads, moments: 'nvfp4', recompute: 'all' } as const
const estimate: MemoryEstimate = Qwen3Nvfp4Model.estimateMemory(config, options)
const before = process.memoryUsage.rss()
const optimizer = model.createOptimizer({ lr: 1e-4, moments: 'nvfp4', seed: 1 })
const batch = { ids: [ids(T, 3)], labels: [ids(T, 3)] }
const losses: number[] = []
for (let i = 0; i < 3; i++) {
  const time = await seconds(async () => losses.push((await optimizer.trainStep(batch, { maxGradNorm: 1 })).loss))
  row(`training step ${i + 1}, ${B}x${T}`, `${time.toFixed(2)} s, loss ${losses[i]!.toFixed(3)}`)
}
row('estimateMemory', gb(estimate.total))
row('process peak resident', `${gb(peakResident())} (${gb(before)} before training, ${gb(freemem())} free)`)
const use = await model.memory()
row('memory() of the device, peak', JSON.stringify(use))
await optimizer.dispose()
await model.dispose()
