import { GgufReader } from 'qwen3-nvfp4/dat'
import { ggufBytes, text, u32, u64, type GgufParts, type Tensor } from '../support/gguf'

const f32 = (name: string, count = 8): Tensor => ({ name, type: 0, shape: [count], data: Buffer.alloc(count * 4, 1) })

const whole: GgufParts = {
  metadata: [
    ['general.architecture', ['string', 'qwen3']],
    ['a.u8', ['u8', 255]],
    ['a.i32', ['i32', -5]],
    ['a.f32', ['f32', 0.5]],
    ['a.f64', ['f64', 0.1]],
    ['a.bool', ['bool', 1]],
    ['a.u64', ['u64', 2 ** 40]],
    ['a.huge', ['u64', 2n ** 63n]],
    ['a.i64', ['i64', -7]],
    ['a.strings', ['strings', ['', 'é', '你好']]],
    ['a.numbers', ['numbers', Int32Array.of(-1, 0, 7)]],
  ],
  tensors: [
    f32('first', 3),
    { name: 'matrix', type: 1, shape: [2, 5], data: Buffer.alloc(20, 2) },
    { name: 'packed', type: 40, shape: [3, 64], data: Buffer.alloc(108, 3) },
    { name: 'q8', type: 8, shape: [1, 32], data: Buffer.alloc(34, 4) },
    { name: 'q4', type: 12, shape: [2, 256], data: Buffer.alloc(288, 5) },
    { name: 'scalar', type: 0, shape: [], data: Buffer.alloc(4, 6) },
  ],
}

test('a GGUF gives its metadata and tensors: shapes outermost first, payloads as they are', async () => {
  const bytes = ggufBytes(whole)
  await using reader = await GgufReader.open(bytes)
  expect(Object.fromEntries(reader.metadata)).toEqual({
    'general.architecture': 'qwen3',
    'a.u8': 255,
    'a.i32': -5,
    'a.f32': 0.5,
    'a.f64': 0.1,
    'a.bool': true,
    'a.u64': 2 ** 40,
    'a.huge': 2n ** 63n,
    'a.i64': -7,
    'a.strings': ['', 'é', '你好'],
    'a.numbers': Int32Array.of(-1, 0, 7),
  })
  expect(reader).toMatchObject({ version: 3, alignment: 32, size: bytes.length })
  expect(reader.entries.map(({ key, dtype, shape, bytes }) => [key, dtype, shape, bytes])).toEqual([
    ['first', 'float32', [3], 12],
    ['matrix', 'float16', [2, 5], 20],
    ['packed', 'nvfp4', [3, 64], 108],
    ['q8', 'q8_0', [1, 32], 34],
    ['q4', 'q4_k', [2, 256], 288],
    ['scalar', 'float32', [], 4],
  ])
  for (const [i, { key, bytes, offset }] of reader.entries.entries()) {
    expect(offset % 32).toBe(0)
    expect(await reader.readBytes(key)).toEqual(new Uint8Array(bytes).fill(i + 1))
  }
  expect(await reader.read('packed')).toBeInstanceOf(Uint8Array)
})

test('version 2, another alignment, tensors in another order than their payloads and no padding at the end are read', async () => {
  const other: GgufParts = {
    version: 2,
    alignment: 64,
    metadata: [['general.alignment', ['u32', 64]]],
    tensors: [
      { ...f32('late'), offset: 64n },
      { ...f32('early'), offset: 0n },
    ],
  }
  const bytes = ggufBytes(other)
  await using reader = await GgufReader.open(bytes.subarray(0, bytes.length - 32))
  expect(reader.entries.map(({ key, offset }) => [key, offset % 64])).toEqual([
    ['early', 0],
    ['late', 0],
  ])
})

test('every cut of a file is refused as truncated or gives what was whole', async () => {
  const bytes = ggufBytes(whole)
  const end = bytes.length - 28 // the last payload of 4 bytes has 28 of padding
  for (let length = 0; length < bytes.length; length++) {
    const opened = await GgufReader.open(bytes.subarray(0, length)).catch((error: unknown) => error)
    if (length >= end) expect(opened).toBeInstanceOf(GgufReader)
    else expect(opened).toMatchObject({ code: 'GGUF_TRUNCATED' })
  }
})

const meta = (key: string, ...value: ConstructorParameters<typeof Array>) =>
  ({ metadata: [[key, value]] }) as unknown as GgufParts
const raw = (type: number, ...parts: Uint8Array[]) => meta('k', 'raw', type, Buffer.concat(parts))
const bad = Buffer.from([0xc3, 0x28])
const badText = Buffer.concat([u64(2), bad])
const max = 2n ** 64n - 1n

const corpus: [string, Uint8Array, string, RegExp][] = [
  ['another magic', Buffer.from('GGML\x03\0\0\0'.padEnd(64, '\0')), 'GGUF_BAD_HEADER', /GGUF/],
  ['version 1', ggufBytes({ version: 1 }), 'GGUF_BAD_HEADER', /version 1/],
  ['big-endian order', ggufBytes({ version: 0x03000000 }), 'GGUF_BAD_HEADER', /big-endian/],
  ['2^64 - 1 tensors', ggufBytes({ tensorCount: max }), 'GGUF_TRUNCATED', /18446744073709551615 tensors/],
  ['2^64 - 1 values', ggufBytes({ valueCount: max }), 'GGUF_TRUNCATED', /18446744073709551615 metadata/],
  ['one value more than there is room for', ggufBytes({ valueCount: 3n }), 'GGUF_TRUNCATED', /3 metadata/],
  [
    'a key twice',
    ggufBytes({
      metadata: [
        ['k', ['u8', 1]],
        ['k', ['u8', 1]],
      ],
    }),
    'GGUF_DUPLICATE_KEY',
    /"k"/,
  ],
  ['an empty key', ggufBytes(meta('', 'u32', 1)), 'GGUF_BAD_METADATA', /0 characters/],
  [
    'a key that is not UTF-8',
    Buffer.concat([Buffer.from('GGUF'), u32(3), u64(0), u64(1), badText, Buffer.alloc(20)]),
    'GGUF_BAD_METADATA',
    /UTF-8/,
  ],
  ['an unknown type', ggufBytes(raw(13, Buffer.alloc(8))), 'GGUF_BAD_METADATA', /type 13/],
  ['a type of the prototype', ggufBytes(raw(2 ** 31, Buffer.alloc(8))), 'GGUF_BAD_METADATA', /type 2147483648/],
  ['a bool of 2', ggufBytes(meta('k', 'bool', 2)), 'GGUF_BAD_METADATA', /bool of 2/],
  ['a string of 2^64 - 1 bytes', ggufBytes(raw(8, u64(max))), 'GGUF_TRUNCATED', /string has/],
  ['a string that is not UTF-8', ggufBytes(raw(8, badText)), 'GGUF_BAD_METADATA', /UTF-8/],
  [
    'an array of 2^64 - 1 bytes',
    ggufBytes(raw(9, u32(0), u64(max))),
    'GGUF_TRUNCATED',
    /18446744073709551615 elements/,
  ],
  ['an array of 2^61 doubles', ggufBytes(raw(9, u32(12), u64(2n ** 61n))), 'GGUF_TRUNCATED', /elements/],
  ['an array of 2^61 strings', ggufBytes(raw(9, u32(8), u64(2n ** 61n))), 'GGUF_TRUNCATED', /elements/],
  [
    'an array whose string is too long',
    ggufBytes(raw(9, u32(8), u64(1), u64(99), Buffer.alloc(8))),
    'GGUF_TRUNCATED',
    /string 0/,
  ],
  ['an array whose string is not UTF-8', ggufBytes(raw(9, u32(8), u64(1), badText)), 'GGUF_BAD_METADATA', /UTF-8/],
  [
    'an array of arrays',
    ggufBytes(raw(9, u32(9), u64(1), u32(9), u64(1), u32(0), u64(0))),
    'GGUF_BAD_METADATA',
    /arrays of arrays/,
  ],
  ['an array of an unknown type', ggufBytes(raw(9, u32(77), u64(1), Buffer.alloc(8))), 'GGUF_BAD_METADATA', /type 77/],
  ['an alignment of 0', ggufBytes(meta('general.alignment', 'u32', 0)), 'GGUF_BAD_METADATA', /alignment of 0/],
  ['an alignment of 48', ggufBytes(meta('general.alignment', 'u32', 48)), 'GGUF_BAD_METADATA', /alignment of 48/],
  [
    'an alignment of 2^63',
    ggufBytes(meta('general.alignment', 'u64', 2n ** 63n)),
    'GGUF_BAD_METADATA',
    /9223372036854775808/,
  ],
  [
    'an alignment in words',
    ggufBytes(meta('general.alignment', 'string', '32')),
    'GGUF_BAD_METADATA',
    /alignment of 32/,
  ],
  ['a tensor twice', ggufBytes({ tensors: [f32('x'), f32('x')] }), 'GGUF_DUPLICATE_KEY', /"x"/],
  ['a tensor without a name', ggufBytes({ tensors: [f32('')] }), 'GGUF_BAD_METADATA', /0 characters/],
  ['five dimensions', ggufBytes({ tensors: [{ ...f32('x'), shape: [1, 1, 1, 1, 8] }] }), 'GGUF_BAD_TENSOR', /5 dim/],
  [
    '2^32 - 1 dimensions',
    Buffer.concat([Buffer.from('GGUF'), u32(3), u64(1), u64(0), text('x'), Buffer.alloc(64, 255)]),
    'GGUF_BAD_TENSOR',
    /4294967295/,
  ],
  ['an unknown tensor type', ggufBytes({ tensors: [{ ...f32('x'), type: 4 }] }), 'GGUF_BAD_TENSOR', /type 4/],
  ['a dimension of 0', ggufBytes({ tensors: [{ ...f32('x'), shape: [0] }] }), 'GGUF_BAD_TENSOR', /empty/],
  [
    'rows that are no whole blocks',
    ggufBytes({ tensors: [{ ...f32('x'), type: 40, shape: [2, 32] }] }),
    'GGUF_BAD_TENSOR',
    /nvfp4/,
  ],
  [
    'a shape over 2^53',
    ggufBytes({ tensors: [{ ...f32('x'), shape: [2 ** 40, 2 ** 40] }] }),
    'GGUF_BAD_TENSOR',
    /larger/,
  ],
  ['a payload past the end', ggufBytes({ tensors: [{ ...f32('x'), shape: [100] }] }), 'GGUF_TRUNCATED', /payload/],
  [
    'an offset that is not aligned',
    ggufBytes({ tensors: [{ ...f32('x'), offset: 4n }] }),
    'GGUF_BAD_OFFSETS',
    /multiple of 32/,
  ],
  [
    'an offset of 2^64 - 32',
    ggufBytes({ tensors: [{ ...f32('x'), offset: 2n ** 64n - 32n }] }),
    'GGUF_BAD_OFFSETS',
    /past/,
  ],
  ['a hole', ggufBytes({ tensors: [f32('x'), { ...f32('y'), offset: 64n }] }), 'GGUF_BAD_OFFSETS', /past/],
  [
    'two tensors in one place',
    ggufBytes({ tensors: [f32('x'), { ...f32('y'), offset: 0n }] }),
    'GGUF_BAD_OFFSETS',
    /inside/,
  ],
  [
    'overlapping tensors',
    ggufBytes({ tensors: [f32('x', 16), { ...f32('y'), offset: 32n }] }),
    'GGUF_BAD_OFFSETS',
    /inside/,
  ],
]

describe('refused', () => {
  test.each(corpus)('%s', async (_, bytes, code, message) => {
    const error: unknown = await GgufReader.open(bytes).catch((caught: unknown) => caught)
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) as string })
  })
})
