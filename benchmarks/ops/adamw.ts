/**
 * One AdamW update per weight and moment form: millions of elements a second.
 *
 *   npx tsx benchmarks/ops/adamw.ts [threads] [isa]
 *
 * [512, 4096] elements, gradients of one size, the third to eighth step, the fastest of the six. `bytes` is what the
 * update reads and writes of weight and state besides the 4 bytes of gradient.
 */
import { makeState, takeStep, type Moments, type Storage, type WeightMode } from '../../test/support/adamw-state'
import { seededValues, type OpOptions } from '../../test/support/native-ops'

const [N, K] = [512, 4096]
const options: OpOptions = { threads: Number(process.argv[2] ?? 1), isa: process.argv[3] as OpOptions['isa'] }
if (!options.isa) delete options.isa

const kinds: { storage: Storage; mode: WeightMode; moments: Moments }[] = [
  ...(['nvfp4', 'int8', 'bf16', 'fp32'] as const).map((moments) => ({
    storage: 'nvfp4' as const,
    mode: 'nvfp4' as const,
    moments,
  })),
  ...(['nvfp4+residual', 'bf16', 'fp32'] as const).map((mode) => ({
    storage: 'nvfp4' as const,
    mode,
    moments: 'nvfp4' as const,
  })),
  { storage: 'bf16', mode: 'nvfp4', moments: 'nvfp4' },
  { storage: 'fp32', mode: 'nvfp4', moments: 'nvfp4' },
  { storage: 'fp32', mode: 'nvfp4', moments: 'fp32' },
]

const bytes = { nvfp4: 9 / 16, int8: 17 / 16, bf16: 2, fp32: 4, fp16: 2 }
const extra = { nvfp4: 0, 'nvfp4+residual': 9 / 16, bf16: 2, fp32: 4 }

console.log('weight   mode             moments   Melem/s   bytes')
for (const { storage, mode, moments } of kinds) {
  const state = makeState(N, K, seededValues(N * K, 1, storage === 'nvfp4' ? 300 : 0.05), { storage, mode, moments })
  let best = Infinity
  for (let t = 1; t <= 8; t++) {
    const g = seededValues(N * K, 10 + t, 1e-3)
    const start = performance.now()
    takeStep(state, g, t, { lr: storage === 'nvfp4' ? 0.5 : 1e-4 }, options)
    if (t > 2) best = Math.min(best, performance.now() - start)
  }
  const moved = 2 * (bytes[storage] + 2 * bytes[moments] + (storage === 'nvfp4' ? extra[mode] : 0))
  const columns = [storage.padEnd(9), (storage === 'nvfp4' ? mode : '–').padEnd(17), moments.padEnd(8)]
  console.log(`${columns.join('')}${((N * K) / best / 1e3).toFixed(0).padStart(9)} ${moved.toFixed(2).padStart(7)}`)
}
