/** Greedy decoding of one sequence: tokens as JavaScript gets them, and how long its event loop was held up meanwhile. */
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { type Bench, median, now, quantile, tokenIds } from './measure'
import { decodeLimit } from './workloads'

/** Tokens of the short run that is taken off a long one: the prompt, and what a generation costs once. */
const SHORT = 4

/** Seconds since the start at which each new token arrived, and at which the generation was over. */
async function arrivals(
  { model }: Bench,
  prompt: number,
  maxTokens: number,
): Promise<{ times: number[]; end: number }> {
  const ids = tokenIds(prompt, model.config.vocabSize)
  const times: number[] = []
  const start = now()
  for await (const _token of model.generate(ids, { maxTokens, stopTokens: [], maxRepeats: 0 })) {
    times.push(now() - start)
  }
  return { times, end: now() - start }
}

export async function measureDecode(bench: Bench): Promise<void> {
  for (const { prompt, tokens } of bench.workload.decode) {
    await bench.attempt(`decode at ${prompt}`, () => measureContext(bench, prompt, tokens))
  }
}

async function measureContext(bench: Bench, prompt: number, tokens: number): Promise<void> {
  const runs = bench.quick ? 3 : 5
  const short: number[] = []
  for (let i = 0; i <= runs; i++) short.push((await arrivals(bench, prompt, SHORT)).end)
  const long: { end: number; first: number; gap: number; slow: number }[] = []
  const delay = monitorEventLoopDelay({ resolution: 1 })
  delay.enable()
  for (let i = 0; i < runs; i++) {
    const { times, end } = await arrivals(bench, prompt, tokens)
    const gaps = times.slice(1).map((time, j) => time - times[j]!)
    long.push({ end, first: times[0]!, gap: median(gaps), slow: quantile(gaps, 0.99) })
  }
  delay.disable()
  const middle = (pick: (run: (typeof long)[number]) => number) => median(long.map(pick))
  const ms = (seconds: number) => `${(1000 * seconds).toFixed(2)} ms`
  bench.add({
    what: `decode, context ${prompt}–${prompt + tokens}`,
    // Of whole generations: single arrivals are as late as the event loop is.
    ours: (tokens - SHORT) / (middle((run) => run.end) - median(short.slice(1))),
    unit: 'tok/s',
    limit: decodeLimit(bench.workload, prompt, tokens, bench.machine),
    peers: { eager: `decode eager ${prompt}`, compiled: `decode compiled ${prompt}` },
    note:
      `between arrivals median ${ms(middle((run) => run.gap))}, p99 ${ms(middle((run) => run.slow))}; ` +
      `first after ${ms(middle((run) => run.first))}; event loop delay p99 ${ms(delay.percentile(99) / 1e9)}`,
  })
}
