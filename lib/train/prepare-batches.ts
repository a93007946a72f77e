import type { PreparedBatch } from '../../types/training'
import { wrongValue } from '../check'
import type { BatchPlan } from './batch-options'
import { BatchRows } from './batch-rows'
import { emptySet, fitSample } from './fit-sample'
import { Pacer } from './pacer'
import type { LocatedSample, SampleRun, SampleSource } from './sample-source'

/** The sample at a place. What goes wrong with it is thrown where it is awaited, if it comes to that. */
function ask(run: SampleRun, epoch: number, place: number): Promise<LocatedSample | undefined> {
  const asked = Promise.resolve(run.at(epoch, place))
  asked.catch(() => {})
  return asked
}

/** The batches of one epoch from a place on. */
async function* epochBatches(
  run: SampleRun,
  plan: BatchPlan,
  pacer: Pacer,
  epoch: number,
  from: number,
): AsyncGenerator<PreparedBatch, void, undefined> {
  let rows = new BatchRows(plan)
  let place = from
  const ahead: Promise<LocatedSample | undefined>[] = []
  for (;;) {
    const pause = pacer.pause()
    if (pause) await pause
    while (ahead.length < run.readAhead) ahead.push(ask(run, epoch, place + ahead.length))
    const sample = await ahead.shift()
    if (!sample) break
    const fitted = await fitSample(sample, plan)
    if (!rows.add(fitted)) {
      yield rows.finish({ epoch, sample: place })
      rows = new BatchRows(plan)
      rows.add(fitted)
    }
    place++
  }
  if (!rows.isEmpty) yield rows.finish({ epoch: epoch + 1, sample: 0 })
  else if (from === 0) throw emptySet()
  else throw wrongValue('a cursor of this set', 'from.sample', from)
}

/** The batches of a set, each made when it is asked for. */
async function* batchesOf(
  source: SampleSource,
  plan: BatchPlan,
  signal: AbortSignal,
): AsyncGenerator<PreparedBatch, void, undefined> {
  const pacer = new Pacer(plan.signal, signal)
  const { maxTokens, shuffle, seed, from } = plan
  const run = await source.open({ maxTokens, shuffle, seed, pacer })
  try {
    for (let epoch = from.epoch; epoch < plan.epochs; epoch++) {
      yield* epochBatches(run, plan, pacer, epoch, epoch === from.epoch ? from.sample : 0)
    }
  } finally {
    await run.close()
  }
}

/** Wakes those who wait for a change. */
class Bell {
  #ring = () => {}
  #rung = new Promise<void>((resolve) => (this.#ring = resolve))

  ring(): void {
    this.#ring()
    this.#rung = new Promise((resolve) => (this.#ring = resolve))
  }

  wait(): Promise<void> {
    return this.#rung
  }
}

/** The batches of a set, `lookAhead` of them prepared while those before them are trained on. */
export async function* prepareBatches(
  source: SampleSource,
  plan: BatchPlan,
): AsyncGenerator<PreparedBatch, void, undefined> {
  plan.signal?.throwIfAborted()
  const stop = new AbortController()
  const batches = batchesOf(source, plan, stop.signal)
  if (plan.lookAhead === 0) {
    yield* batches
    return
  }
  const ready: PreparedBatch[] = []
  const changed = new Bell()
  let ended: { error?: unknown } | undefined
  const prepare = async () => {
    for await (const batch of batches) {
      ready.push(batch)
      changed.ring()
      while (ready.length >= plan.lookAhead && !stop.signal.aborted) await changed.wait()
      if (stop.signal.aborted) return
    }
  }
  const preparing = prepare().then(
    () => void (ended = {}),
    (error: unknown) => void (ended = { error }),
  )
  void preparing.then(() => changed.ring())
  try {
    for (;;) {
      plan.signal?.throwIfAborted()
      const batch = ready.shift()
      if (batch) {
        changed.ring()
        yield batch
      } else if (ended) {
        if ('error' in ended) throw ended.error
        return
      } else {
        await changed.wait()
      }
    }
  } finally {
    stop.abort()
    changed.ring()
    await preparing
  }
}
