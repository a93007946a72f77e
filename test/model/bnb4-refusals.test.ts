/** Broken and hostile bitsandbytes weights: each is refused by a code and by name before anything is computed. */
import { join } from 'node:path'
import { openCheckpoint, Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import {
  bnb4Quantization,
  bnb4Tensors,
  quantState,
  writeBnb4Dat,
  writeBnb4Directory,
  type Bnb4Checkpoint,
  type Bnb4Way,
} from '../support/bnb4-files'
import { failure, temporaryFolder } from '../support/files'

const q = 'model.layers.0.self_attn.q_proj.weight'
const stateKey = `${q}.quant_state.bitsandbytes__nf4`
const twice: Bnb4Way = { codebook: 'nf4', nested: true }
const once: Bnb4Way = { codebook: 'nf4' }
const shape = [128, 64]

type Tensors = Bnb4Checkpoint['tensors']

async function refusal(change: (tensors: Tensors) => unknown, way = twice, quantization = bnb4Quantization(way)) {
  const { tensors } = bnb4Tensors(way)
  change(tensors)
  return failure(openCheckpoint(await writeBnb4Directory(temporaryFolder(), tensors, quantization)))
}

const bytes = (data: Uint8Array) => ({ dtype: 'uint8' as const, shape: [data.length], data })
const floats = (data: Float32Array) => ({ dtype: 'float32' as const, shape: [data.length], data })
const deep = (depth: number) => '['.repeat(depth) + ']'.repeat(depth)

describe('a quantisation state', () => {
  const state = quantState(twice, shape, 0.1)
  const json = (change: object) => JSON.stringify({ ...state, ...change })
  const cases: [string, string | Uint8Array, string][] = [
    ['that is cut off', json({}).slice(0, 40), 'not JSON'],
    ['that is empty', '', 'not JSON'],
    ['of wrong UTF-8', Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d), 'not JSON'],
    ['that is a list', '[]', 'Expected a JSON object but received an array of 0'],
    ['that is null', 'null', 'Expected a JSON object but received null'],
    ['30000 deep', deep(30_000), 'Expected a JSON object'],
    ['with Python’s NaN', json({}).replace('0.1', 'NaN'), 'not JSON'],
    ['of nothing', '{}', 'Expected "nf4" for quant_type but received nothing'],
    ['of another type', json({ quant_type: 'fp4' }), 'Expected "nf4" for quant_type but received "fp4"'],
    ['of the prototype’s fields', '{"__proto__": {"quant_type": "nf4"}}', 'quant_type but received nothing'],
    ['with negative blocks', json({ blocksize: -64 }), 'for blocksize but received -64'],
    ['with no blocks', json({ blocksize: 0 }), 'for blocksize but received 0'],
    ['with huge blocks', json({ blocksize: 2 ** 53 }), 'for blocksize but received 9007199254740992'],
    ['with blocks of 32', json({ blocksize: 32 }), '64 | 128 | 256 | 512 | 1024 | 2048 | 4096 for blocksize'],
    ['with half a block', json({ blocksize: 64.5 }), 'for blocksize but received 64.5'],
    ['with blocks in words', json({ blocksize: '64' }), 'for blocksize but received "64"'],
    ['with deep blocks', json({ blocksize: 'x' }).replace('"x"', deep(20_000)), 'for blocksize but received an array'],
    ['with blocks that the file has not', json({ blocksize: 128 }), 'has 128 values, which is not one for each 128'],
    ['of another shape', json({ shape: [64, 128] }), 'Expected [128, 64] for shape but received [64, 128]'],
    ['of a negative shape', json({ shape: [-128, -64] }), 'for shape but received [-128, -64]'],
    ['of a huge shape', json({ shape: [1e308, 64] }), 'for shape but received [1e+308, 64]'],
    ['of a flat shape', json({ shape: [8192] }), 'for shape but received [8192]'],
    ['of no shape', json({ shape: null }), 'for shape but received null'],
    ['nested in another type', json({ nested_dtype: 'float16' }), 'Expected "float32" for nested_dtype'],
    ['nested in no blocks', json({ nested_blocksize: 0 }), 'for nested_blocksize but received 0'],
    ['nested in other blocks', json({ nested_blocksize: 64 }), 'has 1 values, which is not one for each 64 of 128'],
    ['with an infinite offset', json({}).replace('0.1', '1e999'), 'a finite number for nested_offset'],
    ['with an offset past f32', json({ nested_offset: 1e39 }), 'a finite number for nested_offset but received 1e+39'],
    ['without an offset', json({ nested_offset: undefined }), 'nested_offset but received nothing'],
  ]
  test.each(cases)('%s is refused', async (_, content, message) => {
    const data = typeof content === 'string' ? Uint8Array.from(Buffer.from(content)) : content
    expect(await refusal((tensors) => tensors.set(stateKey, bytes(data)))).toMatchObject({
      code: 'CHECKPOINT_BAD_QUANT_STATE',
      key: expect.stringContaining(q),
      message: expect.stringContaining(message),
    })
  })

  test('of a megabyte is not read', async () => {
    const data = Uint8Array.from(Buffer.from(deep(500_000)))
    expect(await refusal((tensors) => tensors.set(stateKey, bytes(data)))).toMatchObject({
      code: 'CHECKPOINT_SHAPE_MISMATCH',
      message: expect.stringContaining('at most 65536 bytes'),
    })
  })
})

describe('tensors', () => {
  const table = Float32Array.from({ length: 16 }, (_, i) => (i - 8) / 8)
  const cases: [string, string, string, (tensors: Tensors) => unknown][] = [
    [
      'another table',
      'CHECKPOINT_BAD_QUANT_STATE',
      'quant_map but received -1, -0.875',
      (tensors) => tensors.set(`${q}.quant_map`, floats(table)),
    ],
    [
      'a table of NaN',
      'CHECKPOINT_BAD_QUANT_STATE',
      'quant_map but received NaN',
      (tensors) => tensors.set(`${q}.quant_map`, floats(table.map(() => NaN))),
    ],
    [
      'a table of 15',
      'CHECKPOINT_SHAPE_MISMATCH',
      'Expected float32[16]',
      (tensors) => tensors.set(`${q}.quant_map`, floats(table.subarray(1))),
    ],
    [
      'a table in bytes',
      'CHECKPOINT_UNSUPPORTED_TYPE',
      'Expected float32 for',
      (tensors) => tensors.set(`${q}.quant_map`, bytes(new Uint8Array(16))),
    ],
    [
      'an infinite number in the nested table',
      'CHECKPOINT_BAD_QUANT_STATE',
      'nested_quant_map has the value Infinity',
      (tensors) => tensors.set(`${q}.nested_quant_map`, floats(new Float32Array(256).fill(Infinity))),
    ],
    [
      'a nested table of 255',
      'CHECKPOINT_SHAPE_MISMATCH',
      'Expected float32[256]',
      (tensors) => tensors.set(`${q}.nested_quant_map`, floats(new Float32Array(255))),
    ],
    [
      'an absmax too few',
      'CHECKPOINT_SHAPE_MISMATCH',
      'one for each block of 64 to 4096 elements of parameter [128, 64]',
      (tensors) => tensors.set(`${q}.absmax`, bytes(new Uint8Array(127))),
    ],
    [
      'blocks of 32',
      'CHECKPOINT_SHAPE_MISMATCH',
      'but received uint8[256]',
      (tensors) => tensors.set(`${q}.absmax`, bytes(new Uint8Array(256))),
    ],
    [
      'no absmax in its tensor',
      'CHECKPOINT_SHAPE_MISMATCH',
      'but received uint8[0]',
      (tensors) => tensors.set(`${q}.absmax`, bytes(new Uint8Array(0))),
    ],
    [
      'fp32 absmax beside nested ones',
      'CHECKPOINT_UNSUPPORTED_TYPE',
      'Expected uint8 for',
      (tensors) => tensors.set(`${q}.absmax`, floats(new Float32Array(128))),
    ],
    [
      'nested absmax of another count',
      'CHECKPOINT_SHAPE_MISMATCH',
      'nested_absmax but received float32[5]',
      (tensors) => tensors.set(`${q}.nested_absmax`, floats(new Float32Array(5))),
    ],
    [
      'a byte of codes too few',
      'CHECKPOINT_SHAPE_MISMATCH',
      'Expected two elements a byte, uint8[4096, 1], of parameter [128, 64]',
      (tensors) => tensors.set(q, bytes(new Uint8Array(4095))),
    ],
    [
      'codes in another type',
      'CHECKPOINT_UNSUPPORTED_TYPE',
      'but received float8_e4m3fn',
      (tensors) => tensors.set(q, { dtype: 'float8_e4m3fn', shape: [4096, 1], data: new Uint8Array(4096) }),
    ],
    [
      'a norm in 4 bits',
      'CHECKPOINT_SHAPE_MISMATCH',
      'Expected dense values of parameter f32[64] for model.norm.weight',
      (tensors) => {
        for (const [key, tensor] of tensors) {
          if (key.startsWith(q)) tensors.set(key.replace(q, 'model.norm.weight'), tensor)
        }
      },
    ],
    [
      'a codebook of another name',
      'CHECKPOINT_UNSUPPORTED_TENSORS',
      'quant_state.bitsandbytes__af4',
      (tensors) => tensors.set(`${q}.quant_state.bitsandbytes__af4`, tensors.get(stateKey)!),
    ],
  ]
  test.each(cases)('with %s are refused: %s', async (_, code, message, change) => {
    expect(await refusal(change)).toMatchObject({ code, message: expect.stringContaining(message) })
  })

  test('that are missing are all named', async () => {
    const lacks = async (...keys: string[]) =>
      (await refusal((tensors) => keys.map((key) => tensors.delete(key)))).message
    expect(await lacks(`${q}.absmax`, `${q}.nested_quant_map`)).toContain(
      `2 tensors (${q}.absmax, ${q}.nested_quant_map)`,
    )
    expect(await lacks(q)).toContain(`1 tensor (${q})`)
    expect(await lacks(`${q}.quant_map`)).toContain(`1 tensor (${q}.quant_map)`)
    expect(await lacks(stateKey)).toContain(`1 tensor (${stateKey})`)
  })

  test('of a .dat need no state but for double quantisation', async () => {
    for (const [way, code] of [
      [once, 'none'],
      [twice, 'CHECKPOINT_MISSING_TENSORS'],
    ] as const) {
      const { tensors } = bnb4Tensors({ ...way, state: false })
      const path = await writeBnb4Dat(join(temporaryFolder(), 'x.dat'), tensors)
      expect(await failure(openCheckpoint(path))).toMatchObject({ code })
    }
  })

  test('with an absmax that is no number do not load, and the block is named', async () => {
    for (const value of [NaN, -Infinity]) {
      const { tensors } = bnb4Tensors(once)
      ;(tensors.get(`${q}.absmax`)!.data as Float32Array)[77] = value
      const folder = await writeBnb4Directory(temporaryFolder(), tensors, bnb4Quantization(once))
      expect(await failure(Qwen3Nvfp4Model.load(folder))).toMatchObject({
        code: 'NON_FINITE_WEIGHT',
        message: expect.stringMatching(/q_proj\.weight holds the absmax (nan|-inf) of block 77$/),
      })
    }
  })
})

describe('quantization_config', () => {
  const nothing = () => {}
  test.each<[string, object, string, string]>([
    ['8 bits', { load_in_4bit: false, load_in_8bit: true }, 'CONFIG_UNSUPPORTED', 'load_in_8bit but received true'],
    ['no 4 bits', { load_in_4bit: false }, 'CONFIG_UNSUPPORTED', 'Expected true for quantization_config.load_in_4bit'],
    ['a third table', { bnb_4bit_quant_type: 'int4' }, 'CONFIG_UNSUPPORTED', 'bnb_4bit_quant_type but received "int4"'],
    ['words for bits', { load_in_4bit: 'yes' }, 'CONFIG_INVALID', 'load_in_4bit but received "yes"'],
    ['a number for a table', { bnb_4bit_quant_type: 4 }, 'CONFIG_INVALID', 'bnb_4bit_quant_type but received 4'],
  ])('with %s is refused', async (_, change, code, message) => {
    const refused = await refusal(nothing, once, { ...bnb4Quantization(once), ...change })
    expect(refused).toMatchObject({ code, message: expect.stringContaining(message) })
  })

  test('of another method belongs to other files', async () => {
    const modelopt = { quant_method: 'modelopt', quant_algo: 'NVFP4' }
    expect(await refusal(nothing, once, modelopt)).toMatchObject({
      code: 'CHECKPOINT_BAD_INDEX',
      message: expect.stringContaining('has the tensors of bitsandbytes, but its configuration says modelopt'),
    })
  })
})
