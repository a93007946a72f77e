import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { SafetensorsReader, writeSafetensors, type SafetensorsTensor } from 'qwen3-nvfp4/dat'
import { describeWithShared, listFolder, sharedPath, temporaryFolder } from '../support/files'

/** A file from header text (or an object) and a payload. */
function file(header: unknown, payloadBytes = 0, declared?: bigint): Uint8Array {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(declared ?? BigInt(json.length))
  return Buffer.concat([length, json, Buffer.alloc(payloadBytes, 7)])
}

const u8 = (begin: number, end: number) => ({ dtype: 'U8', shape: [end - begin], data_offsets: [begin, end] })

const corpus: [string, Uint8Array, string, RegExp][] = [
  ['an empty file', new Uint8Array(0), 'SAFETENSORS_TRUNCATED', /header/],
  ['a header that is not all there', file({}, 0, 99n), 'SAFETENSORS_TRUNCATED', /header/],
  ['a header over 100 MB', file({}, 0, 100_000_001n), 'SAFETENSORS_BAD_HEADER', /100000001/],
  ['a header length of 2^64 - 1', file({}, 0, 2n ** 64n - 1n), 'SAFETENSORS_BAD_HEADER', /18446744073709551615/],
  ['a header that is not JSON', file('{"a":'), 'SAFETENSORS_BAD_HEADER', /JSON/],
  [
    'a header that is not UTF-8',
    Buffer.concat([file('  ').subarray(0, 8), Buffer.from([0xff, 0xfe])]),
    'SAFETENSORS_BAD_HEADER',
    /UTF-8/,
  ],
  ['a header that is an array', file('[]'), 'SAFETENSORS_BAD_HEADER', /object/],
  ['metadata that is no map of strings', file({ __metadata__: { a: 1 } }), 'SAFETENSORS_BAD_HEADER', /__metadata__/],
  [
    'a name twice',
    file(
      '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      1,
    ),
    'SAFETENSORS_DUPLICATE_KEY',
    /"a"/,
  ],
  [
    'a field twice',
    file('{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', 1),
    'SAFETENSORS_DUPLICATE_KEY',
    /dtype/,
  ],
  ['an unknown dtype', file({ a: { ...u8(0, 1), dtype: 'F4' } }, 1), 'SAFETENSORS_UNKNOWN_TYPE', /"F4"/],
  [
    'a dtype from the prototype',
    file({ a: { ...u8(0, 1), dtype: 'constructor' } }, 1),
    'SAFETENSORS_UNKNOWN_TYPE',
    /constructor/,
  ],
  ['a negative dimension', file({ a: { ...u8(0, 1), shape: [-1] } }, 1), 'SAFETENSORS_BAD_SHAPE', /-1/],
  ['a shape over 2^53', file({ a: { ...u8(0, 1), shape: [2 ** 30, 2 ** 30] } }, 1), 'SAFETENSORS_BAD_SHAPE', /shape/],
  [
    'offsets that do not fit the shape',
    file({ a: { ...u8(0, 2), shape: [3] } }, 2),
    'SAFETENSORS_BAD_OFFSETS',
    /3 bytes/,
  ],
  ['overlapping payloads', file({ a: u8(0, 3), b: u8(2, 4) }, 4), 'SAFETENSORS_BAD_OFFSETS', /inside/],
  ['a hole between payloads', file({ a: u8(0, 1), b: u8(2, 3) }, 3), 'SAFETENSORS_BAD_OFFSETS', /past/],
  ['a payload past the end', file({ a: u8(0, 9) }, 8), 'SAFETENSORS_TRUNCATED', /the file ends/],
  ['bytes after the last payload', file({ a: u8(0, 1) }, 2), 'SAFETENSORS_BAD_OFFSETS', /1 bytes follow/],
]

describe('SafetensorsReader', () => {
  test.each(corpus)('refuses %s', async (name, bytes, code, message) => {
    await expect(SafetensorsReader.open(bytes)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
      file: 'bytes',
    })
  })

  test('sorts entries by position and reads each', async () => {
    const reader = await SafetensorsReader.open(
      file({ b: u8(2, 3), __metadata__: { format: 'pt' }, a: u8(0, 2), e: u8(3, 3) }, 3),
    )
    expect(reader.entries.map(({ key }) => key)).toEqual(['a', 'b', 'e'])
    expect(reader.metadata).toEqual({ format: 'pt' })
    expect(await reader.read('a')).toEqual(Uint8Array.of(7, 7))
    await expect(reader.read('c')).rejects.toMatchObject({ code: 'SAFETENSORS_NO_SUCH_KEY' })
  })
})

describe('writeSafetensors', () => {
  const folder = temporaryFolder()
  const tensors = new Map<string, SafetensorsTensor>([
    ['codes', { dtype: 'uint8', shape: [3], data: Uint8Array.of(1, 2, 3) }],
    ['__proto__', { dtype: 'bfloat16', shape: [1, 2], data: Uint16Array.of(4, 5) }],
    ['wide', { dtype: 'float64', shape: [], data: Float64Array.of(0.1) }],
  ])

  test('writes what reads back equal, wide elements first', async () => {
    const path = join(folder, 'a.safetensors')
    await writeSafetensors(path, tensors, { metadata: { made: 'here' } })
    await using reader = await SafetensorsReader.open(path)
    expect(reader.entries.map(({ key }) => key)).toEqual(['wide', '__proto__', 'codes'])
    for (const [key, { data }] of tensors) expect(await reader.read(key)).toEqual(data)
    expect(reader.entries[0]!.offset % 8).toBe(0)
    expect(reader.metadata).toEqual({ made: 'here' })
  })

  test('refuses what does not fit, and leaves nothing', async () => {
    const write = (tensor: Partial<SafetensorsTensor>) =>
      writeSafetensors(
        join(folder, 'b.safetensors'),
        new Map([['x', { dtype: 'uint8', shape: [1], data: new Uint8Array(1), ...tensor }]]),
      )
    await expect(write({ shape: [2] })).rejects.toThrow(/2 bytes/)
    await expect(write({ dtype: 'qint8' })).rejects.toThrow(/dtype/)
    await expect(write({ data: [1] as never })).rejects.toThrow(/typed array/)
    const stopped = writeSafetensors(join(folder, 'b.safetensors'), tensors, {
      signal: AbortSignal.abort(new Error('no')),
    })
    await expect(stopped).rejects.toThrow('no')
    expect(listFolder(folder)).toEqual(['a.safetensors'])
  })
})

describeWithShared('safetensors of Hugging Face', ['hf-parity', 'tiny-tied', 'model.safetensors'], () => {
  test('are indexed to the last byte', async () => {
    const path = sharedPath('hf-parity', 'tiny-tied', 'model.safetensors')
    await using reader = await SafetensorsReader.open(path)
    const last = reader.entries.at(-1)!
    expect(last.offset + last.bytes).toBe(readFileSync(path).length)
    expect(reader.entry('model.embed_tokens.weight')).toMatchObject({ dtype: 'float32', shape: [512, 64] })
  })
})
