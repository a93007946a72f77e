/**
 * All products of a decoded token of Qwen3-4B in one launch on CUDA device 0, in every layout: µs a token, GB/s of the
 * weights, beside the same products launched one by one.
 *
 *   npx tsx benchmarks/ops/decode-chain-cuda.ts [replays: 20] [layers: 36]
 */
import { ops } from '../../test/support/native-ops'
import '../support/require-cuda'

const replays = Number(process.argv[2] ?? 20)
const layers = Number(process.argv[3] ?? 36)
const weights = layers * (6144 * 2560 + 2560 * 4096 + 19456 * 2560 + 2560 * 9728) + 151936 * 2560
const bytes = (weights * 9) / 16

const KIB = 1024
const variants = [
  [1, 1],
  [1, 2],
  [2, 1],
  [2, 2],
  [3, 1],
].flatMap(([rowGroups, tiles]) => [0, 160 * KIB, 136 * KIB].map((ringBytes) => ({ rowGroups, tiles, ringBytes })))

const times = ops.decodeChainCudaTime!({ layers, variants }, replays) as number[]
console.log(`row groups, tiles, ring KiB: µs a token, GB/s (${(bytes / 1e9).toFixed(3)} GB)`)
variants.forEach(({ rowGroups, tiles, ringBytes }, i) => {
  const cells = [
    rowGroups,
    tiles,
    ringBytes ? ringBytes / KIB : 'all',
    times[i]!.toFixed(1),
    (bytes / times[i]! / 1e3).toFixed(0),
  ]
  console.log(cells.map((cell) => String(cell).padStart(8)).join(''))
})
