import { TrainingData, type PreparedBatch, type TrainingSampleInput } from 'qwen3-nvfp4'
import { byteTokenizer, collect, numbered, numberedSet, order, plain, writeData } from '../support/training-data'

const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0)
const sorted = (values: readonly number[]) => [...values].sort((a, b) => a - b)
const upTo = (count: number) => Array.from({ length: count }, (_, i) => i)

/** Samples of lengths 2 to 11, each of its own id. */
const uneven = (count: number) => TrainingData.fromSamples(upTo(count).map((i) => numbered(i, 2 + ((i * 7) % 10))))

describe('batches', () => {
  it('are padded on the right to their longest sample, without labels there', async () => {
    const data = await TrainingData.fromSamples([numbered(5, 3), numbered(6, 2), numbered(7, 4)])
    const batches = await collect(data, { maxTokens: 8, batchSize: 2, shuffle: false, padTokenId: 9 })
    expect(plain(batches)).toEqual([
      {
        ids: [[5, 5, 5], [6, 6, 9]], // prettier-ignore
        labels: [[-100, 5, 5], [-100, 6, -100]], // prettier-ignore
        segments: undefined,
        cursor: { epoch: 0, sample: 2 },
        samples: 2,
        tokens: 3,
        truncated: 0,
      },
      {
        ids: [[7, 7, 7, 7]],
        labels: [[-100, 7, 7, 7]],
        segments: undefined,
        cursor: { epoch: 1, sample: 0 },
        samples: 1,
        tokens: 3,
        truncated: 0,
      },
    ])
  })

  it('say where their samples come from', async () => {
    const pairs = writeData('pairs.tsv', 'a\t1\n\nb\t2\n')
    const text = writeData('text.txt', 'some words')
    const tokenizer = byteTokenizer()
    const sets = [
      await TrainingData.fromTsv(pairs, { tokenizer }),
      await TrainingData.fromText(text, { tokenizer }),
      await numberedSet(2),
    ]
    const origins: unknown[] = []
    for (const data of sets) {
      const batches = await collect(data, { maxTokens: 80, batchSize: 2, shuffle: false })
      origins.push(...batches.flatMap((batch) => batch.origins))
    }
    expect(origins).toEqual([
      { where: `${pairs}, line 1`, file: pairs, line: 1 },
      { where: `${pairs}, line 3`, file: pairs, line: 3 },
      { where: `${text}, tokens 0 to 10` },
      { where: 'samples[0]' },
      { where: 'samples[1]' },
    ])
  })

  it('packed, fill rows with samples that follow each other, each a segment of its own', async () => {
    const data = await TrainingData.fromSamples([3, 4, 2, 3, 5].map((length, i) => numbered(i + 1, length)))
    const batches = await collect(data, { maxTokens: 8, batchSize: 2, shuffle: false, pack: true })
    expect(plain(batches)).toEqual([
      {
        ids: [[1, 1, 1, 2, 2, 2, 2, 0], [3, 3, 4, 4, 4, 0, 0, 0]], // prettier-ignore
        labels: [
          [-100, 1, 1, -100, 2, 2, 2, -100],
          [-100, 3, -100, 4, 4, -100, -100, -100],
        ],
        segments: [0, 0, 0, 1, 1, 1, 1, 2, 0, 0, 1, 1, 1, 2, 2, 2],
        cursor: { epoch: 0, sample: 4 },
        samples: 4,
        tokens: 8,
        truncated: 0,
      },
      {
        ids: [[5, 5, 5, 5, 5, 0, 0, 0]],
        labels: [[-100, 5, 5, 5, 5, -100, -100, -100]],
        segments: [0, 0, 0, 0, 0, 1, 1, 1],
        cursor: { epoch: 1, sample: 0 },
        samples: 1,
        tokens: 4,
        truncated: 0,
      },
    ])
  })

  it('lose and repeat no sample when packed', async () => {
    const data = await uneven(200)
    for (const maxTokens of [11, 12, 64, 1000]) {
      const batches = await collect(data, { maxTokens, batchSize: 3, pack: true })
      const seen = batches.flatMap(({ batch }) =>
        batch.labels.flatMap((row) =>
          [...row].flatMap((label, t) => (row[t - 1] === -100 && label >= 0 ? [label] : [])),
        ),
      )
      expect(sorted(seen)).toEqual(upTo(200))
      expect(sum(batches.map(({ samples }) => samples))).toBe(200)
      for (const { batch } of batches) expect(batch.ids[0]!.length).toBeLessThanOrEqual(maxTokens)
    }
  })

  it('have another order in every epoch and for every seed, and the same one for the same', async () => {
    const data = await numberedSet(50)
    const run = (seed: number) => collect(data, { maxTokens: 4, batchSize: 4, epochs: 2, seed })
    const first = order(await run(1))
    expect(first).toEqual(order(await run(1)))
    expect(sorted(first.slice(0, 50))).toEqual(upTo(50))
    expect(sorted(first.slice(50))).toEqual(upTo(50))
    expect(first.slice(0, 50)).not.toEqual(first.slice(50))
    expect(first).not.toEqual(order(await run(2)))
    expect(order(await collect(data, { maxTokens: 4, shuffle: false }))).toEqual(upTo(50))
  })

  it.each([1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000])('shuffle %d samples to each place once', async (count) => {
    expect(sorted(order(await collect(await numberedSet(count, 2), { maxTokens: 2, seed: 3n ** 30n })))).toEqual(
      upTo(count),
    )
  })

  it('shuffle without a trend: neighbours part, and every place gets early and late samples', async () => {
    const data = await numberedSet(100, 2)
    const places = order(await collect(data, { maxTokens: 2, epochs: 200 }))
    const atFirst = upTo(200).map((epoch) => places[epoch * 100]!)
    // 200 draws of 0 … 99 have a mean of 49.5 with a standard deviation of 2.04, and about 87 different values.
    expect(Math.abs(sum(atFirst) / 200 - 49.5)).toBeLessThan(8)
    expect(new Set(atFirst).size).toBeGreaterThan(70)
    const neighbours = places.filter((sample, i) => i % 100 > 0 && sample === places[i - 1]! + 1)
    // 99 of 9900 possible pairs in each of 200 epochs are 198 expected, give or take 14.
    expect(neighbours.length).toBeLessThan(300)
  })

  it.each([
    ['shuffled', {}],
    ['packed', { pack: true }],
    ['in order', { shuffle: false }],
    ['packed, prepared when asked for', { pack: true, lookAhead: 0 }],
  ])('go on at any cursor as if never stopped: %s', async (_, options) => {
    const data = await uneven(40)
    const settings = { maxTokens: 24, batchSize: 2, epochs: 3, seed: 7, ...options }
    const all = await collect(data, settings)
    for (const [i, { cursor }] of all.entries()) {
      const from = JSON.parse(JSON.stringify(cursor)) as PreparedBatch['cursor']
      expect(plain(await collect(data, { ...settings, from }))).toEqual(plain(all.slice(i + 1)))
    }
    expect(all.at(-1)!.cursor).toEqual({ epoch: 3, sample: 0 })
  })

  it('refuse a cursor beyond the set', async () => {
    await expect(collect(await numberedSet(3), { maxTokens: 4, from: { epoch: 0, sample: 4 } })).rejects.toThrow(
      'Expected a cursor of this set for from.sample but received 4',
    )
  })

  it('are counted without being given out', async () => {
    const data = await uneven(40)
    const settings = { maxTokens: 24, batchSize: 2, epochs: 3, pack: true }
    expect(await data.countBatches(settings)).toBe((await collect(data, settings)).length)
    await expect(data.countBatches({ ...settings, epochs: Infinity })).rejects.toThrow('a number of epochs that ends')
  })

  it('end with the reason of an aborted signal, before and between batches', async () => {
    const data = await numberedSet(100)
    const reason = new Error('enough')
    await expect(collect(data, { maxTokens: 4, signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    const controller = new AbortController()
    const batches = data.batches({ maxTokens: 4, signal: controller.signal, epochs: Infinity })
    await batches.next()
    controller.abort(reason)
    await expect(batches.next()).rejects.toBe(reason)
    expect(await batches.next()).toEqual({ done: true, value: undefined })
  })
})

describe('samples of one’s own', () => {
  it('keep labels that are not their ids', async () => {
    const samples = [{ ids: [1, 2, 3], labels: [-100, 9, -100] }, numbered(4, 2)]
    const [first, second] = await collect(await TrainingData.fromSamples(samples), { maxTokens: 4, shuffle: false })
    expect([...first!.batch.labels[0]!]).toEqual([-100, 9, -100])
    expect([...first!.batch.ids[0]!]).toEqual([1, 2, 3])
    expect([...second!.batch.labels[0]!]).toEqual([-100, 4])
  })

  it('have a fingerprint that follows their contents', async () => {
    const of = async (samples: TrainingSampleInput[]) => (await TrainingData.fromSamples(samples)).fingerprint
    expect(await of([numbered(1, 2)])).toBe(await of([numbered(1, 2)]))
    expect(await of([numbered(1, 2)])).not.toBe(await of([numbered(1, 3)]))
    expect(await of([{ ids: [1, 2], labels: [1, 2] }])).not.toBe(await of([{ ids: [1, 2], labels: [-100, 2] }]))
    expect(await of([numbered(1, 2), numbered(1, 4)])).not.toBe(await of([numbered(1, 4), numbered(1, 2)]))
  })

  it('may be a stream, which resumes by skipping and is begun anew in every epoch', async () => {
    let [begun, open] = [0, 0]
    const data = await TrainingData.fromSamples(async function* () {
      begun++
      open++
      try {
        for (const i of upTo(10)) yield numbered(i, 2)
      } finally {
        open--
      }
    })
    expect(data.sampleCount).toBeUndefined()
    const settings = { maxTokens: 4, batchSize: 3, epochs: 2 }
    const all = await collect(data, settings)
    expect(order(all)).toEqual([...upTo(10), ...upTo(10)])
    expect(begun).toBe(2)
    const rest = await collect(data, { ...settings, from: all[1]!.cursor })
    expect(plain(rest)).toEqual(plain(all.slice(2)))
    for await (const batch of data.batches(settings)) {
      expect(batch.samples).toBe(3)
      break
    }
    expect(open).toBe(0)
  })

  it('are prepared no further ahead than asked for', async () => {
    let given = 0
    const data = await TrainingData.fromSamples(async function* () {
      for (; ; given++) yield numbered(1, 2)
    })
    const batches = data.batches({ maxTokens: 4, batchSize: 2, lookAhead: 3 })
    await batches.next()
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve))
    // The batch that was taken, three that wait, and one sample of the next.
    expect(given).toBe(2 * 4)
    await batches.return()
  })

  it.each([
    ['an empty set', [], { code: 'TRAINING_DATA_EMPTY' }],
    [
      'masked labels',
      [numbered(1, 2), { ids: [1, 2], labels: [1, -100] }],
      { code: 'TRAINING_NO_LABELS', message: /samples\[1\]/ },
    ],
    [
      'an id beyond the vocabulary',
      [{ ids: [1, 300], labels: [1, 2] }],
      { code: 'TRAINING_ID_OUT_OF_RANGE', message: /samples\[0\]: ids\[1\] is 300, but the vocabulary has 259 ids/ },
    ],
    [
      'a label beyond the vocabulary',
      [{ ids: [1, 2], labels: [1, 259] }],
      { code: 'TRAINING_ID_OUT_OF_RANGE', message: /labels\[1\] is 259/ },
    ],
    [
      'a negative label',
      [{ ids: [1, 2], labels: [1, -1] }],
      { message: /or -100 for samples\[0\].labels\[1\] but received -1/ },
    ],
    [
      'lengths that differ',
      [{ ids: [1, 2], labels: [1] }],
      { message: 'Expected 2 labels as of ids for samples[0].labels but received 1' },
    ],
    [
      'a sample that is none',
      [7 as never],
      { message: 'Expected a sample { ids, labels } for samples[0] but received 7' },
    ],
  ])('refuse %s', async (_, samples, { code, message }: { code?: string; message?: RegExp | string }) => {
    const run = async () =>
      collect(await TrainingData.fromSamples(samples), { maxTokens: 4, vocabSize: 259, shuffle: false })
    const error = (await run().then(() => undefined, (reason: unknown) => reason)) as { code?: string; message: string } // prettier-ignore
    expect(error.code).toBe(code)
    if (message !== undefined) expect(error.message).toMatch(message)
  })

  it('refuse a stream that gives nothing, or is to be shuffled', async () => {
    const empty = await TrainingData.fromSamples(() => [])
    await expect(collect(empty, { maxTokens: 4 })).rejects.toMatchObject({ code: 'TRAINING_DATA_EMPTY' })
    await expect(collect(empty, { maxTokens: 4, shuffle: true })).rejects.toThrow('a stream has one order')
  })
})

describe('long samples', () => {
  const long = { ids: upTo(10), labels: upTo(10).map((id) => (id >= 7 ? id : -100)) }

  it('are refused with what would help', async () => {
    await expect(collect(await TrainingData.fromSamples([long]), { maxTokens: 6 })).rejects.toMatchObject({
      code: 'TRAINING_SAMPLE_TOO_LONG',
      message:
        'samples[0]: a sample of 10 tokens, but maxTokens is 6; raise it to 10, or set truncate to cut prompts from the left',
    })
  })

  it('lose the left of their prompt when that is asked for, and are counted', async () => {
    const data = await TrainingData.fromSamples([long, numbered(1, 2)])
    const [first, second] = await collect(data, { maxTokens: 6, truncate: true, shuffle: false })
    expect([...first!.batch.ids[0]!]).toEqual([4, 5, 6, 7, 8, 9])
    expect([...first!.batch.labels[0]!]).toEqual([-100, -100, -100, 7, 8, 9])
    expect([first!.truncated, first!.tokens, second!.truncated]).toEqual([1, 3, 0])
    // The same samples in longer rows are whole again.
    expect([...(await collect(data, { maxTokens: 10, shuffle: false }))[0]!.batch.ids[0]!]).toEqual(long.ids)
  })

  it('never lose a part of the answer', async () => {
    const data = await TrainingData.fromSamples([long])
    const [only] = await collect(data, { maxTokens: 4, truncate: true })
    expect([...only!.batch.ids[0]!]).toEqual([6, 7, 8, 9])
    await expect(collect(data, { maxTokens: 3, truncate: true })).rejects.toThrow(
      'only its prompt is cut, so raise it to 4',
    )
  })
})

describe('TrainingData.mix', () => {
  const mix = async (weights: number[]) =>
    TrainingData.mix(
      await Promise.all(
        weights.map(async (weight, k) => ({
          data: await TrainingData.fromSamples(upTo(10 * (k + 1)).map((i) => numbered(100 * k + i, 2))),
          weight,
        })),
      ),
    )

  it('gives every stretch of samples each set’s share', async () => {
    const data = await mix([7, 2, 1])
    expect(data.sampleCount).toBe(60)
    const places = order(await collect(data, { maxTokens: 2, epochs: 10 }))
    expect(places.length).toBe(600)
    for (let begin = 0; begin + 50 <= 600; begin += 25) {
      const shares = [0, 1, 2].map(
        (k) => places.slice(begin, begin + 50).filter((id) => Math.floor(id / 100) === k).length,
      )
      expect(Math.abs(shares[0]! - 35)).toBeLessThanOrEqual(2)
      expect(Math.abs(shares[1]! - 10)).toBeLessThanOrEqual(2)
      expect(Math.abs(shares[2]! - 5)).toBeLessThanOrEqual(2)
    }
  })

  it('begins a set again in another order when it is used up, each sample as often as the others', async () => {
    const places = order(await collect(await mix([1, 1]), { maxTokens: 2, epochs: 4 }))
    const first = places.filter((id) => id < 100)
    expect(first.length).toBe(60)
    for (let pass = 0; pass < 6; pass++) expect(sorted(first.slice(10 * pass, 10 * pass + 10))).toEqual(upTo(10))
    expect(first.slice(0, 10)).not.toEqual(first.slice(10, 20))
  })

  it('resumes at any cursor', async () => {
    const data = await mix([7, 2, 1])
    const settings = { maxTokens: 64, batchSize: 2, pack: true, epochs: 3 }
    const all = await collect(data, settings)
    for (const [i, { cursor }] of all.entries()) {
      expect(plain(await collect(data, { ...settings, from: cursor }))).toEqual(plain(all.slice(i + 1)))
    }
  })

  it('mixes text with conversations, and mixes with sets', async () => {
    const tokenizer = byteTokenizer()
    const text = await TrainingData.fromText(writeData('a.txt', 'x'.repeat(200)), { tokenizer })
    const pairs = await TrainingData.fromTsv(writeData('a.tsv', 'a\tA\nb\tB\n'), { tokenizer })
    const inner = TrainingData.mix([{ data: text, weight: 1 }, { data: pairs, weight: 1 }]) // prettier-ignore
    const data = TrainingData.mix([{ data: inner, weight: 3 }, { data: pairs, weight: 1 }]) // prettier-ignore
    expect(data.sampleCount).toBeUndefined()
    const batches = await collect(data, { maxTokens: 50, batchSize: 4 })
    const texts = order(batches).filter((id) => id === 'x'.charCodeAt(0)).length
    // Five windows and two pairs, and the pairs again: 9 samples, of which 3/8 are windows.
    expect(sum(batches.map(({ samples }) => samples))).toBe(9)
    expect(Math.abs(texts - (9 * 3) / 8)).toBeLessThan(1)
  })

  it('has a fingerprint of its parts and weights', async () => {
    expect((await mix([1, 2])).fingerprint).toBe((await mix([1, 2])).fingerprint)
    expect((await mix([1, 2])).fingerprint).not.toBe((await mix([2, 1])).fingerprint)
  })

  it('refuses streams, weights of nothing and what is no set', async () => {
    const stream = await TrainingData.fromSamples(() => [numbered(1, 2)])
    const data = await numberedSet(3)
    expect(() => TrainingData.mix([])).toThrow('at least one set')
    expect(() => TrainingData.mix([{ data: stream, weight: 1 }])).toThrow('a set that is no stream for parts[0].data')
    expect(() => TrainingData.mix([{ data, weight: 0 }])).toThrow('above 0 for parts[0].weight but received 0')
    expect(() => TrainingData.mix([{ data: {} as never, weight: 1 }])).toThrow('a TrainingData for parts[0].data')
  })
})
