/**
 * How packed moments change the size of AdamW's update: RMS(u) relative to exact moments, steps 21 to 200.
 *
 *   npx tsx benchmarks/ops/adamw-update-size.ts
 *
 * Gradients [16, 256] are σ_k · N(0, 1) with column sizes σ_k = exp(spread · N(0, 1)) · 1e-4, β = (.9, .999).
 */
import { ReferenceAdamw, makeState, takeStep } from '../../test/support/adamw-state'
import { seededValues } from '../../test/support/native-ops'

const [N, K] = [16, 256]

function normal(count: number, seed: number): Float32Array {
  const [a, b] = [seededValues(count, seed), seededValues(count, seed + 77777)]
  return a.map((x, i) => Math.sqrt(-2 * Math.log((x + 1) / 2 + 1e-7)) * Math.cos(Math.PI * b[i]!))
}

console.log('spread   nvfp4    int8    bf16')
for (const spread of [0, 0.5, 1, 1.5]) {
  const column = normal(K, 5).map((x) => Math.exp(spread * x) * 1e-4)
  const ratios = (['nvfp4', 'int8', 'bf16'] as const).map((moments) => {
    const state = makeState(N, K, new Float32Array(N * K), { storage: 'fp32', moments })
    const reference = new ReferenceAdamw(new Float64Array(N * K))
    let [packed, exact] = [0, 0]
    for (let t = 1; t <= 200; t++) {
      const g = normal(N * K, t).map((x, i) => x * column[i % K]!)
      const size = takeStep(state, g, t, { lr: 1e-3 }).updateRms
      const wanted = reference.step(g, t, 1e-3)
      if (t <= 20) continue
      packed += size
      exact += wanted
    }
    return (packed / exact).toFixed(3).padStart(8)
  })
  console.log(`${spread.toFixed(1).padStart(6)}${ratios.join('')}`)
}
