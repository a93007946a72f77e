/** Broken and hostile files of a Hugging Face directory: each is refused by a code of its own, quickly and without a crash. */
import { copyFileSync, mkdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { openCheckpoint, SafetensorsReader, Tokenizer, toConfigJson } from 'qwen3-nvfp4'
import { denseConfig, writeDense } from '../support/dense-directory'
import { temporaryFolder } from '../support/files'

const shard = 'model-00001-of-00001.safetensors'

/** A whole directory whose weights stand behind an index. */
async function writeSharded(): Promise<{ folder: string; map: Record<string, string> }> {
  const folder = await writeDense(temporaryFolder())
  renameSync(join(folder, 'model.safetensors'), join(folder, shard))
  await using reader = await SafetensorsReader.open(join(folder, shard))
  const map = Object.fromEntries(reader.entries.map(({ key }) => [key, shard]))
  return { folder, map }
}

const writeIndex = (folder: string, json: unknown) =>
  writeFileSync(join(folder, 'model.safetensors.index.json'), typeof json === 'string' ? json : JSON.stringify(json))

async function codeOf(work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => undefined,
    (caught: unknown) => caught as { code?: string; message: string },
  )
  return error ? (error.code ?? error.message) : 'no error'
}

const deep = (depth: number) => '['.repeat(depth) + ']'.repeat(depth)

describe('an index', () => {
  test('opens a directory whose shard is a link, as the cache of Hugging Face has them', async () => {
    const { folder, map } = await writeSharded()
    renameSync(join(folder, shard), join(folder, 'blob'))
    symlinkSync('blob', join(folder, shard))
    writeIndex(folder, { weight_map: map })
    expect((await openCheckpoint(folder)).files).toEqual([join(folder, shard)])
  })

  const name = 'model.norm.weight'
  const cases: [string, (map: Record<string, string>) => unknown][] = [
    ['a path upwards', (map) => ({ weight_map: { ...map, [name]: '../outside.safetensors' } })],
    ['an absolute path', (map) => ({ weight_map: { ...map, [name]: '/tmp/outside.safetensors' } })],
    ['a path into a folder', (map) => ({ weight_map: { ...map, [name]: 'inside/model.safetensors' } })],
    ['a name of two dots', (map) => ({ weight_map: { ...map, [name]: '..' } })],
    ['a name with a zero byte', (map) => ({ weight_map: { ...map, [name]: 'a\0.safetensors' } })],
    ['a number for a name', (map) => ({ weight_map: { ...map, [name]: 5 } })],
    ['a file of another kind', (map) => ({ weight_map: { ...map, [name]: 'config.json' } })],
    ['a name that no file has', (map) => ({ weight_map: { ...map, ghost: shard } })],
    ['a tensor less than the file', ({ [name]: _, ...map }) => ({ weight_map: map })],
    ['no weight_map', () => ({ metadata: {} })],
    ['an empty weight_map', () => ({ weight_map: {} })],
    ['a list for a weight_map', () => ({ weight_map: [shard] })],
    ['a list', () => []],
    ['null', () => 'null'],
    ['half of it', (map) => JSON.stringify({ weight_map: map }).slice(0, 100)],
    ['JSON 100000 deep', () => deep(100_000)],
  ]
  test.each(cases)('with %s is refused', async (_, make) => {
    const { folder, map } = await writeSharded()
    mkdirSync(join(folder, 'inside'))
    copyFileSync(join(folder, shard), join(folder, 'inside', 'model.safetensors'))
    writeIndex(folder, make(map))
    expect(await codeOf(openCheckpoint(folder))).toBe('CHECKPOINT_BAD_INDEX')
  })

  test('that names a file which is not there is refused by its path', async () => {
    const { folder, map } = await writeSharded()
    writeIndex(folder, { weight_map: { ...map, 'model.norm.weight': 'model-00002-of-00002.safetensors' } })
    await expect(openCheckpoint(folder)).rejects.toMatchObject({
      code: 'IO_FAILED',
      message: expect.stringContaining('model-00002-of-00002.safetensors'),
    })
  })
})

describe('config.json', () => {
  const json = toConfigJson(denseConfig)
  const cases: [string, string, unknown][] = [
    ['cut off', 'CONFIG_INVALID', JSON.stringify(json).slice(0, 50)],
    ['wrong UTF-8', 'CONFIG_INVALID', Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])],
    ['empty', 'CONFIG_INVALID', ''],
    ['JSON 100000 deep', 'CONFIG_INVALID', deep(100_000)],
    ['a deep field', 'CONFIG_INVALID', JSON.stringify({ ...json, rope_parameters: 'x' }).replace('"x"', deep(50_000))],
    ['a list', 'CONFIG_INVALID', '[]'],
    ['a negative size', 'CONFIG_INVALID', { ...json, hidden_size: -48 }],
    ['a huge size', 'CONFIG_INVALID', { ...json, vocab_size: 2 ** 40 }],
    ['a fraction', 'CONFIG_INVALID', { ...json, num_hidden_layers: 1.5 }],
    ['a billion layers', 'CONFIG_INVALID', { ...json, num_hidden_layers: 1e9 }],
    ['a text for a size', 'CONFIG_INVALID', { ...json, head_dim: '16' }],
    ['another architecture', 'CONFIG_UNSUPPORTED', { ...json, model_type: 'qwen3_moe' }],
    [
      'another architecture under the same type',
      'CONFIG_UNSUPPORTED',
      { ...json, architectures: ['Qwen3MoeForCausalLM'] },
    ],
    ['scaled rope', 'CONFIG_UNSUPPORTED', { ...json, rope_scaling: { rope_type: 'yarn', factor: 4 } }],
    ['shapes of another model', 'CHECKPOINT_SHAPE_MISMATCH', { ...json, intermediate_size: 96 }],
    ['more layers than the file', 'CHECKPOINT_MISSING_TENSORS', { ...json, num_hidden_layers: 3 }],
    ['fewer layers than the file', 'CHECKPOINT_UNEXPECTED_TENSORS', { ...json, num_hidden_layers: 1 }],
    ['a quantisation that is a text', 'CONFIG_INVALID', { ...json, quantization_config: 'nvfp4' }],
    ['a quantisation that is a list', 'CONFIG_INVALID', { ...json, quantization_config: [] }],
  ]
  test.each(cases)('with %s is refused: %s', async (_, code, content) => {
    const folder = await writeDense(temporaryFolder())
    const isText = typeof content === 'string' || Buffer.isBuffer(content)
    writeFileSync(join(folder, 'config.json'), isText ? content : JSON.stringify(content))
    expect(await codeOf(openCheckpoint(folder))).toBe(code)
  })

  test.each([
    ['at the top', { rope_theta: 1e6 }],
    ['in rope_parameters', { rope_parameters: { rope_theta: 1e6, rope_type: 'default' } }],
    [
      'in rope_parameters of its layers',
      { rope_parameters: { full_attention: { rope_theta: 1e6, rope_type: 'default' } } },
    ],
    ['in both', { rope_theta: 1e6, rope_parameters: { rope_theta: 1e6 } }],
  ])('is read with the rope base %s', async (_, rope) => {
    const folder = await writeDense(temporaryFolder())
    const { rope_theta: __, rope_scaling: ___, ...rest } = json
    writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...rest, ...rope }))
    expect((await openCheckpoint(folder)).config.ropeTheta).toBe(1e6)
  })
})

describe('a safetensors file', () => {
  /** The header as text, rewritten; the payloads stay. */
  function rewriteHeader(path: string, rewrite: (header: string) => string | Uint8Array): void {
    const file = readFileSync(path)
    const length = Number(file.readBigUInt64LE(0))
    const header = Buffer.from(rewrite(file.toString('utf8', 8, 8 + length)))
    const prefix = Buffer.alloc(8)
    prefix.writeBigUInt64LE(BigInt(header.length))
    writeFileSync(path, Buffer.concat([prefix, header, file.subarray(8 + length)]))
  }
  const field = (name: string, value: string) => (header: string) =>
    header.replace(new RegExp(`("model\\.norm\\.weight":\\{[^}]*"${name}":)(\\[[^\\]]*\\]|"[^"]*")`), `$1${value}`)
  const cases: [string, string, (header: string) => string | Uint8Array][] = [
    ['offsets that go backwards', 'SAFETENSORS_BAD_OFFSETS', field('data_offsets', '[96,0]')],
    ['negative offsets', 'SAFETENSORS_BAD_OFFSETS', field('data_offsets', '[-96,0]')],
    ['offsets past 2^53', 'SAFETENSORS_BAD_OFFSETS', field('data_offsets', '[9007199254740993,9007199254741089]')],
    ['offsets in another payload', 'SAFETENSORS_BAD_OFFSETS', field('data_offsets', '[0,96]')],
    ['a negative size', 'SAFETENSORS_BAD_SHAPE', field('shape', '[-48]')],
    ['a product past 2^53', 'SAFETENSORS_BAD_SHAPE', field('shape', '[4294967296,4294967296]')],
    ['a deep shape', 'SAFETENSORS_BAD_SHAPE', field('shape', deep(20_000))],
    ['a dtype of nobody', 'SAFETENSORS_UNKNOWN_TYPE', field('dtype', '"F4"')],
    [
      'one name twice',
      'SAFETENSORS_DUPLICATE_KEY',
      (header) => header.replace('"model.norm.weight"', '"model.embed_tokens.weight"'),
    ],
    [
      'a name of 30 MB',
      'CHECKPOINT_MISSING_TENSORS',
      (header) => header.replace('model.norm.weight', 'x'.repeat(30e6)),
    ],
    ['wrong UTF-8', 'SAFETENSORS_BAD_HEADER', () => Buffer.from([0x7b, 0x22, 0xc3, 0x28, 0x22, 0x3a, 0x31, 0x7d])],
    ['a header 100000 deep', 'SAFETENSORS_BAD_HEADER', () => deep(100_000)],
    [
      'the name of the prototype',
      'CHECKPOINT_MISSING_TENSORS',
      (header) => header.replace('model.norm.weight', '__proto__'),
    ],
  ]
  test.each(cases)('with %s is refused: %s', async (_, code, rewrite) => {
    const folder = await writeDense(temporaryFolder())
    rewriteHeader(join(folder, 'model.safetensors'), rewrite)
    const started = performance.now()
    expect(await codeOf(openCheckpoint(folder))).toBe(code)
    expect(performance.now() - started).toBeLessThan(10_000)
  })
})

describe('tokenizer.json', () => {
  test.each<[string, string | Uint8Array]>([
    ['cut off', '{"model": {"type": "BPE", "vocab": {"a"'],
    ['empty', ''],
    ['a list', '[]'],
    ['null', 'null'],
    ['JSON 100000 deep', deep(100_000)],
    ['no model', '{"version": "1.0"}'],
    [
      'a vocabulary that is a number',
      '{"model": {"type": "BPE", "vocab": 5, "merges": []}, "decoder": {"type": "ByteLevel"}}',
    ],
    [
      'merges that are no pairs',
      '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1, null]}, "decoder": {"type": "ByteLevel"}}',
    ],
    ['a model of another kind', '{"model": {"type": "Magic"}, "decoder": {"type": "ByteLevel"}}'],
  ])('that is %s is refused', async (_, content) => {
    const folder = temporaryFolder()
    writeFileSync(join(folder, 'tokenizer.json'), content)
    writeFileSync(join(folder, 'tokenizer_config.json'), '{}')
    expect(await codeOf(Tokenizer.fromFile(folder))).toBe('TOKENIZER_INVALID')
  })
})
