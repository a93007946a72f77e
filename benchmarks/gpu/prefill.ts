/** A forward pass without a cache; it counts until the logits of the last token are in JavaScript. */
import { type Bench, median, secondsOf, tokenIds } from './measure'
import { prefillLimit } from './workloads'

export async function measurePrefill(bench: Bench): Promise<void> {
  for (const T of bench.workload.prefill) await bench.attempt(`prefill ${T}`, () => measureTokens(bench, T))
}

async function measureTokens({ model, workload, machine, quick, add }: Bench, T: number): Promise<void> {
  const ids = tokenIds(T, workload.config.vocabSize)
  const run = async () => {
    const result = await model.forward(ids, { logits: 'last' })
    await result.logits.toFloat32Array()
    await result.dispose()
  }
  for (let i = 0; i < 2; i++) await run()
  const times: number[] = []
  for (let i = 0; i < (quick ? 5 : 15); i++) times.push(await secondsOf(run))
  add({
    what: `prefill ${T}`,
    ours: T / median(times),
    unit: 'tok/s',
    limit: prefillLimit(workload, T, machine),
    peers: { eager: `prefill ${T}` },
    note: `${(1000 * median(times)).toFixed(1)} ms, best ${(1000 * Math.min(...times)).toFixed(1)}`,
  })
}
