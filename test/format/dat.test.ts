import { createHash } from 'node:crypto'
import { closeSync, ftruncateSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import fc from 'fast-check'
import { DatReader, DatWriter, elementTypes, readDat, rewriteDat, SafetensorsReader, writeDat } from 'qwen3-nvfp4/dat'
import { datBytes, datEntry } from '../support/dat-bytes'
import { describeWithShared, sharedPath, temporaryFolder } from '../support/files'

const folder = temporaryFolder()
const path = (name: string) => join(folder, name)
const bytesOf = (data: ArrayBufferView) => Buffer.from(data.buffer, data.byteOffset, data.byteLength)
const sha = (file: string) => createHash('sha256').update(readFileSync(file)).digest('hex')

describe('DatReader', () => {
  const file = datBytes(
    3,
    datEntry('a', 6, [], [0, 0, 128, 63]),
    datEntry('é中', 0, [2, 3], [1, 2, 3, 4, 5, 6]),
    datEntry('z', 4, [0, 4], []),
  )

  test('lists key, type, shape, offset and size of every entry without reading payloads', async () => {
    const reads: number[] = []
    const source = {
      name: 'counting',
      size: 8 + (1 << 20) + 9,
      read: async (target: Uint8Array, position: number) => {
        reads.push(target.length)
        const whole = datBytes(
          2,
          datEntry('big', 0, [1 << 20], new Uint8Array(1 << 20)),
          datEntry('end', 2, [1], [7, 0]),
        )
        const part = whole.subarray(position, position + target.length)
        target.set(part)
        return part.length
      },
      close: async () => {},
    }
    const whole = datBytes(2, datEntry('big', 0, [1 << 20], new Uint8Array(1 << 20)), datEntry('end', 2, [1], [7, 0]))
    const reader = await DatReader.open({ ...source, size: whole.length })
    expect(reader.entries).toEqual([
      { key: 'big', elementType: 0, dtype: 'uint8', shape: [1 << 20], offset: 10, bytes: 1 << 20 },
      { key: 'end', elementType: 2, dtype: 'int16', shape: [1], offset: whole.length - 2, bytes: 2 },
    ])
    expect(reads.reduce((a, b) => a + b, 0)).toBeLessThan(1 << 17)
  })

  test('counts the bytes of a non-ASCII key, not its characters', async () => {
    await using reader = await DatReader.open(file)
    expect(reader.entries.map(({ key }) => key)).toEqual(['a', 'é中', 'z'])
    expect(await reader.read('é中')).toEqual(Uint8Array.of(1, 2, 3, 4, 5, 6))
    expect(await reader.read('a')).toEqual(Float32Array.of(1))
    expect(await reader.read('z')).toEqual(new BigInt64Array(0))
  })

  test('opens a path, a file URL, an open handle and bytes alike', async () => {
    writeFileSync(path('three.dat'), file)
    await using handle = await open(path('three.dat'))
    for (const input of [path('three.dat'), new URL(`file://${path('three.dat')}`), handle, file]) {
      await using reader = await DatReader.open(input)
      expect(reader.entries).toHaveLength(3)
      expect(await reader.readBytes('é中')).toEqual(Uint8Array.of(1, 2, 3, 4, 5, 6))
    }
    expect((await handle.stat()).size).toBe(file.length)
  })

  test('streams a payload in chunks of the size asked', async () => {
    await using reader = await DatReader.open(file)
    const chunks: Uint8Array[] = []
    const progress: number[] = []
    const onProgress = ({ doneBytes }: { doneBytes: number }) => progress.push(doneBytes)
    for await (const chunk of reader.stream('é中', { chunkBytes: 4, onProgress })) chunks.push(chunk)
    expect(chunks).toEqual([Uint8Array.of(1, 2, 3, 4), Uint8Array.of(5, 6)])
    expect(progress).toEqual([4, 6])
  })

  test('sums counts and bytes by element type', async () => {
    await using reader = await DatReader.open(file)
    expect(reader.summary()).toEqual({
      file: 'bytes',
      bytes: file.length,
      entries: 3,
      payloadBytes: 10,
      dtypes: [
        { dtype: 'uint8', elementType: 0, entries: 1, bytes: 6 },
        { dtype: 'int64', elementType: 4, entries: 1, bytes: 0 },
        { dtype: 'float32', elementType: 6, entries: 1, bytes: 4 },
      ],
    })
  })

  test('reads entries that lie past 4 GiB', async () => {
    const big = 2 ** 32 + 4096
    const head = datBytes(2, 3, 'big', 0, 1, big)
    const tail = datEntry('tail', 1, [3], [1, 255, 128])
    const descriptor = openSync(path('sparse.dat'), 'w')
    ftruncateSync(descriptor, head.length + big + tail.length)
    writeSync(descriptor, head, 0, head.length, 0)
    writeSync(descriptor, tail, 0, tail.length, head.length + big)
    closeSync(descriptor)
    if (statSync(path('sparse.dat')).blocks * 512 > 1 << 20) {
      console.log('skipped: past 4 GiB (this file system has no sparse files)')
      return
    }
    await using reader = await DatReader.open(path('sparse.dat'))
    expect(reader.entries[1]).toMatchObject({ offset: head.length + big + tail.length - 3, bytes: 3 })
    expect(await reader.read('tail')).toEqual(Int8Array.of(1, -1, -128))
    const first = await reader.stream('big', { chunkBytes: 8 })[Symbol.asyncIterator]().next()
    expect(first.value).toEqual(new Uint8Array(8))
  })
})

describe('writeDat, readDat and rewriteDat', () => {
  test('write every element type so that it reads back equal', async () => {
    const tensors = new Map(
      elementTypes.map(({ id, dtype, bytes }) => [
        dtype,
        { elementType: id, shape: [2, 3], data: Uint8Array.from({ length: 6 * bytes }, (_, i) => i * 37 + id) },
      ]),
    )
    await writeDat(path('types.dat'), tensors)
    const back = await readDat(path('types.dat'))
    expect([...back.keys()]).toEqual([...tensors.keys()])
    for (const [key, { data }] of tensors) expect(bytesOf(back.get(key)!.data)).toEqual(bytesOf(data))
  })

  test('any tensors survive a round trip, and a rewrite is byte for byte the input', async () => {
    const tensor = fc
      .tuple(fc.constantFrom(...elementTypes), fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 }), fc.nat(255))
      .map(([{ id, bytes }, shape, seed]) => ({
        elementType: id,
        shape,
        data: Uint8Array.from({ length: shape.reduce((a, b) => a * b, bytes) }, (_, i) => i * 31 + seed),
      }))
    const key = fc
      .string({ unit: 'grapheme', minLength: 1, maxLength: 200 })
      .filter((text) => !/\p{Surrogate}/u.test(text))
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.tuple(key, tensor), { selector: ([name]) => name, maxLength: 8 }),
        async (rows) => {
          await writeDat(path('any.dat'), new Map(rows))
          const back = await readDat(path('any.dat'))
          expect([...back.keys()]).toEqual(rows.map(([name]) => name))
          for (const [name, { elementType, shape, data }] of rows) {
            expect(back.get(name)).toMatchObject({ elementType, shape })
            expect(bytesOf(back.get(name)!.data)).toEqual(bytesOf(data))
          }
          await rewriteDat(path('any.dat'), path('any2.dat'))
          expect(readFileSync(path('any2.dat')).equals(readFileSync(path('any.dat')))).toBe(true)
        },
      ),
      { seed: 20260226, numRuns: 60 },
    )
  })

  test('a rewrite replaces the payloads asked for and nothing else, also in place', async () => {
    const tensors = new Map([
      ['a', { elementType: 0, shape: [3], data: Uint8Array.of(1, 2, 3) }],
      ['b', { elementType: 5, shape: [2], data: Uint16Array.of(1, 2) }],
      ['c', { elementType: 6, shape: [], data: Float32Array.of(5) }],
    ])
    await writeDat(path('in.dat'), tensors)
    const replacements = { b: Uint16Array.of(7, 8), c: () => [bytesOf(Float32Array.of(9))] }
    expect(await rewriteDat(path('in.dat'), path('in.dat'), replacements)).toEqual({ replaced: 2 })
    const back = await readDat(path('in.dat'))
    expect(back.get('a')!.data).toEqual(Uint8Array.of(1, 2, 3))
    expect(back.get('b')!.data).toEqual(Uint16Array.of(7, 8))
    expect(back.get('c')!.data).toEqual(Float32Array.of(9))
  })

  test('a payload may come as a stream in pieces of any size', async () => {
    await using writer = await DatWriter.create(path('stream.dat'), { entries: 1 })
    async function* pieces() {
      for (const length of [1, 0, 3, 2_000_000, 5]) yield new Uint8Array(length).fill(length & 255)
    }
    await writer.write('x', 'uint8', [2_000_009], pieces())
    const { bytes } = await writer.finish()
    expect(statSync(path('stream.dat')).size).toBe(bytes)
    const { data } = (await readDat(path('stream.dat'))).get('x')!
    expect([...bytesOf(data).subarray(0, 5)]).toEqual([1, 3, 3, 3, 128])
  })
})

describeWithShared('.dat files of the stock exporter', ['dat', 'all-dtypes.dat'], () => {
  test('hold the values that safetensors has of the same tensors', async () => {
    await using dat = await DatReader.open(sharedPath('dat', 'all-dtypes.dat'))
    await using truth = await SafetensorsReader.open(sharedPath('dat', 'all-dtypes.safetensors'))
    expect(dat.entries.map(({ key }) => key).sort()).toEqual(truth.entries.map(({ key }) => key).sort())
    for (const { key, dtype, shape } of dat.entries) {
      expect({ key, dtype, shape }).toMatchObject({ dtype: truth.entry(key).dtype, shape: truth.entry(key).shape })
      expect(await dat.read(key)).toEqual(await truth.read(key))
    }
  })

  test('of a model hold the values of its Hugging Face checkpoint', async () => {
    await using dat = await DatReader.open(sharedPath('dat', 'tiny-tied-fp32.dat'))
    await using truth = await SafetensorsReader.open(sharedPath('hf-parity', 'tiny-tied', 'model.safetensors'))
    expect(dat.entries).toHaveLength(truth.entries.length)
    for (const { key } of dat.entries) expect(await dat.read(key)).toEqual(await truth.read(key))
  })

  test.each(['all-dtypes.dat', 'tiny-tied-fp16.dat', 'tiny-tied-fp32.dat'])(
    '%s is rewritten byte for byte',
    async (name) => {
      await rewriteDat(sharedPath('dat', name), path(name))
      expect(sha(path(name))).toBe(sha(sharedPath('dat', name)))
      await writeDat(path(name), await readDat(sharedPath('dat', name)))
      expect(sha(path(name))).toBe(sha(sharedPath('dat', name)))
    },
  )

  test('an optimizer state is refused by what it is', async () => {
    const opening = DatReader.open(sharedPath('dat', 'adamw-state.dat'))
    await expect(opening).rejects.toMatchObject({
      code: 'DAT_OPTIMIZER_STATE',
      message: expect.stringContaining('AdamW'),
    })
  })
})
