import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  convert,
  exportCheckpoint,
  GgufReader,
  openCheckpoint,
  Qwen3Nvfp4Model,
  readDat,
  Tokenizer,
  verify,
  type CheckpointWarning,
  type ConvertOptions,
} from 'qwen3-nvfp4'
import { packedTensors, writeModel } from '../support/checkpoints'
import { writeDense } from '../support/dense-directory'
import { listFolder, temporaryFolder } from '../support/files'
import { writeGguf } from '../support/gguf'
import { ggufConfig, ggufModel, ggufShapes, ggufTokenizer } from '../support/gguf-model'
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny-tokenizer'

const quiet = { onWarning: () => {} }
const q = 'model.layers.0.self_attn.q_proj.weight'

const denseSource = (folder: string, config = ggufConfig) => writeDense(join(folder, 'source'), { config })

async function toGguf(source: string, folder: string, options: ConvertOptions = {}): Promise<string> {
  const target = join(folder, `${options.weights ?? 'nvfp4'}.gguf`)
  await convert(source, target, { ...quiet, ...options })
  return target
}

async function valuesOf(path: string): Promise<Map<string, Float32Array>> {
  await using model = await Qwen3Nvfp4Model.load(path, { weights: 'fp32', threads: 1, ...quiet })
  const values = new Map<string, Float32Array>()
  for (const parameter of model.parameters()) values.set(parameter.name, await parameter.read())
  return values
}

describe('a GGUF that is written', () => {
  test.each(['fp32', 'bf16'] as const)('in %s has the values of a bf16 source, norms in F32', async (weights) => {
    const folder = temporaryFolder()
    const source = await denseSource(folder)
    const target = await toGguf(source, folder, { weights })
    expect(await verify(source, target)).toMatchObject({ equal: true })
    expect((await openCheckpoint(target)).config).toEqual(ggufConfig)
    await using reader = await GgufReader.open(target)
    for (const [name, , shape] of ggufShapes()) {
      const dtype = shape.length === 1 || weights === 'fp32' ? 'float32' : 'bfloat16'
      expect(reader.entry(name)).toMatchObject({ dtype, shape })
    }
    expect(reader.entries).toHaveLength(ggufShapes().length)
  })

  test('in fp16 says what fp16 loses', async () => {
    const folder = temporaryFolder()
    const source = await denseSource(folder)
    const { tensors } = await convert(source, join(folder, 'x.gguf'), { ...quiet, weights: 'fp16' })
    expect(tensors.find(({ name }) => name === q)).toMatchObject({ from: 'bf16', to: 'fp16' })
    expect((await verify(source, join(folder, 'x.gguf'), { tolerance: 1e-6 })).equal).toBe(true)
  })

  test('in NVFP4 has the codes and scales that a two-level .dat has, in blocks of j and j + 8', async () => {
    const folder = temporaryFolder()
    const source = await denseSource(folder)
    const target = await toGguf(source, folder, { scaleRule: 'four-over-six' })
    const dat = join(folder, 'x.dat')
    await convert(source, dat, { ...quiet, scales: 'two-level', denseType: 'bf16', scaleRule: 'four-over-six' })
    expect(await verify(target, dat)).toMatchObject({ equal: true })
    await using reader = await GgufReader.open(target)
    const entries = await readDat(dat)
    const [codes, scales] = ['qdata', 'scale'].map((part) => entries.get(`${q}.${part}`)!.data as Uint8Array)
    const code = (row: number, column: number) => (codes![(row * 64 + column) >> 1]! >> (column % 2 ? 4 : 0)) & 15
    const expected = Uint8Array.from({ length: 128 * 36 }, (_, i) => {
      const [row, at] = [Math.floor(i / 36), i % 36]
      if (at < 4) return scales![row * 4 + at]!
      const [block, j] = [(at - 4) >> 3, (at - 4) & 7]
      return code(row, block * 16 + j) | (code(row, block * 16 + j + 8) << 4)
    })
    expect(reader.entry('blk.0.attn_q.weight')).toMatchObject({ dtype: 'nvfp4', shape: [128, 64], bytes: 128 * 36 })
    expect(await reader.readBytes('blk.0.attn_q.weight')).toEqual(expected)
    expect(reader.entry('blk.0.attn_q.scale')).toMatchObject({ dtype: 'float32', shape: [1] })
    expect(await reader.read('blk.0.attn_q.scale')).toEqual(entries.get(`${q}.scale_2`)!.data)
    expect(reader.entry('token_embd.weight')).toMatchObject({ dtype: 'bfloat16' })
    expect(reader.entry('output_norm.weight')).toMatchObject({ dtype: 'float32' })
  })

  test('in Q8_0 is amax / 127 in fp16 and 32 bytes a block, one by hand, and says its error', async () => {
    const folder = temporaryFolder()
    const model = ggufModel('f32')
    const tensor = model.parts.tensors.find(({ name }) => name === 'blk.0.attn_q.weight')!
    // amax 254 is a scale of 2: values / 2 to nearest, halves away from zero.
    const row = [254, -254, 1, -1, 3, -3, 2.9, 0.99, 0, 100, ...new Array<number>(22).fill(-7)]
    tensor.data.set(Buffer.from(Float32Array.from(row).buffer))
    const source = writeGguf(join(folder, 'source.gguf'), model.parts)
    const target = join(folder, 'x.gguf')
    const { tensors } = await convert(source, target, { ...quiet, weights: 'q8_0' })
    await using reader = await GgufReader.open(target)
    const bytes = Buffer.from(await reader.readBytes('blk.0.attn_q.weight'))
    expect(bytes.readUInt16LE(0)).toBe(0x4000)
    const codes = [127, -127, 1, -1, 2, -2, 1, 0, 0, 50, ...new Array<number>(22).fill(-4)]
    expect([...new Int8Array(bytes.buffer, bytes.byteOffset + 2, 32)]).toEqual(codes)
    expect(reader.entry('token_embd.weight')).toMatchObject({ dtype: 'q8_0', shape: [96, 64] })
    expect(reader.entry('blk.0.attn_q_norm.weight')).toMatchObject({ dtype: 'float32' })

    const report = tensors.find(({ name }) => name === q)!
    const [before, after] = [model.values, await valuesOf(target)]
    before.get(q)!.set(row)
    const errors = before.get(q)!.map((value, i) => after.get(q)![i]! - value)
    const norm = (values: Float32Array) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))
    expect(report).toMatchObject({ from: 'fp32', to: 'q8_0', exact: false, largestError: 1 })
    expect(report.relativeRmsError).toBeCloseTo(norm(errors) / norm(before.get(q)!), 6)
    expect(tensors.find(({ name }) => name === 'model.norm.weight')).toMatchObject({ to: 'fp32', exact: true })
  })

  test('in Q8_0 refuses a block whose scale fp16 has not, and names the value', async () => {
    const folder = temporaryFolder()
    const model = ggufModel('f32')
    const tensor = model.parts.tensors.find(({ name }) => name === 'blk.0.attn_q.weight')!
    tensor.data.set(Buffer.from(Float32Array.of(-9e6).buffer), 4 * (64 + 40))
    const source = writeGguf(join(folder, 'source.gguf'), model.parts)
    await expect(convert(source, join(folder, 'x.gguf'), { ...quiet, weights: 'q8_0' })).rejects.toMatchObject({
      code: 'NON_FINITE_WEIGHT',
      message: expect.stringContaining(`${q} holds a value too large for Q8_0, -9e+06 at row 1, column 40`),
    })
  })

  test('has the metadata that llama.cpp asks of a Qwen3', async () => {
    const folder = temporaryFolder()
    const source = await denseSource(folder)
    const target = await toGguf(source, folder)
    await using reader = await GgufReader.open(target)
    expect(Object.fromEntries(reader.metadata)).toEqual({
      'general.architecture': 'qwen3',
      'general.type': 'model',
      'general.name': 'nvfp4',
      'general.file_type': 39,
      'general.quantization_version': 2,
      'qwen3.block_count': 2,
      'qwen3.context_length': 4096,
      'qwen3.embedding_length': 64,
      'qwen3.feed_forward_length': 128,
      'qwen3.attention.head_count': 4,
      'qwen3.attention.head_count_kv': 2,
      'qwen3.attention.key_length': 32,
      'qwen3.attention.value_length': 32,
      'qwen3.attention.layer_norm_rms_epsilon': Math.fround(1e-6),
      'qwen3.rope.freq_base': 1e6,
      'qwen3.vocab_size': 96,
      'tokenizer.ggml.model': 'none',
      'tokenizer.ggml.bos_token_id': 1,
      'tokenizer.ggml.eos_token_id': 2,
      'tokenizer.ggml.eot_token_id': 3,
    })
    // Little-endian uint32, as its readers expect lengths and ids.
    const at = readFileSync(target).indexOf('qwen3.block_count') + 'qwen3.block_count'.length
    expect([...readFileSync(target).subarray(at, at + 8)]).toEqual([4, 0, 0, 0, 2, 0, 0, 0])
  })
})

describe('NVFP4 goes bit for bit', () => {
  const config = { ...ggufConfig, tieWordEmbeddings: false }

  test.each([undefined, 0.375])('from a .dat, head included, and back; global scale %s', async (globalScale) => {
    const folder = temporaryFolder()
    const source = await writeModel(folder, packedTensors({ config, ...(globalScale && { globalScale }) }), config)
    const target = await toGguf(source, folder)
    expect(await verify(source, target, { by: 'values' })).toMatchObject({ equal: true })
    await using reader = await GgufReader.open(target)
    expect(reader.has('output.scale')).toBe(globalScale !== undefined)
    expect(reader.entry('output.weight').dtype).toBe('nvfp4')
    const back = join(folder, 'back.dat')
    await convert(target, back, { ...quiet, scales: globalScale ? 'two-level' : 'one-level', denseType: 'fp16' })
    const [before, after] = [await readDat(source), await readDat(back)]
    for (const [key, { data }] of before) if (/qdata|scale/.test(key)) expect(after.get(key)!.data).toEqual(data)
  })

  test('from a GGUF to ModelOpt and compressed-tensors and back', async () => {
    const folder = temporaryFolder()
    const source = writeGguf(join(folder, 'source.gguf'), ggufModel('nvfp4', { embedding: 'bf16', scale: true }).parts)
    for (const format of ['modelopt', 'compressed-tensors'] as const) {
      const middle = join(folder, format)
      await convert(source, middle, { ...quiet, format })
      const target = await toGguf(middle, folder)
      const { differences } = await verify(source, target, { by: 'bits' })
      // Norms were F32 and are bf16 in those directories; not every factor is the reciprocal of a float.
      const kinds = differences.filter(({ name }) => !name.includes('norm')).map(({ kind }) => kind)
      expect(kinds.filter((kind) => format === 'modelopt' || kind !== 'global-scale')).toEqual([])
    }
  })

  test('Q8_0 to Q8_0 and GGUF to GGUF change nothing', async () => {
    const folder = temporaryFolder()
    for (const kind of ['q8_0', 'f16', 'bf16'] as const) {
      const source = writeGguf(join(folder, `${kind}.gguf`), ggufModel(kind).parts)
      const weights = ({ q8_0: 'q8_0', f16: 'fp16', bf16: 'bf16' } as const)[kind]
      const target = await toGguf(source, folder, { weights })
      expect(await verify(source, target, { by: 'values' })).toMatchObject({ equal: true })
    }
  })

  test('what a GGUF cannot hold is refused, or quantised anew where that is asked', async () => {
    const folder = temporaryFolder()
    const master = await Qwen3Nvfp4Model.initialize(ggufConfig, { seed: 3, threads: 1 })
    const optimizer = master.createOptimizer({ lr: 1e-2, weights: 'nvfp4+residual' })
    await optimizer.trainStep({ ids: [1, 2, 3, 4], labels: [1, 2, 3, 4] })
    const dat = join(folder, 'x.dat')
    await master.saveDat(dat)
    await master.dispose()
    const refused = convert(dat, join(folder, 'x.gguf'), quiet)
    await expect(refused).rejects.toMatchObject({ code: 'SAVE_LAYOUT_MISMATCH', message: /gguf.*requantize/ })
    const { tensors } = await convert(dat, join(folder, 'x.gguf'), { ...quiet, requantize: true })
    expect(tensors.find(({ name }) => name === q)).toMatchObject({ to: 'nvfp4', exact: false })
  })
})

describe('the tokenizer', () => {
  test('comes along from a directory, and back into one', async () => {
    const folder = temporaryFolder()
    const config = { ...ggufConfig, vocabSize: 300, bosTokenId: undefined, eosTokenIds: undefined }
    const source = await denseSource(folder, config)
    // tokenizer.json of the kind that Qwen3 has, from a GGUF written by hand.
    const middle = writeGguf(join(folder, 'hand.gguf'), {
      ...ggufModel('f16', { config }).parts,
      metadata: [
        ...new Map([...ggufModel('f16', { config }).parts.metadata, ...ggufTokenizer(tinyTokenizerJson(), 300)]),
      ],
    })
    await convert(middle, join(folder, 'hf'), { ...quiet, format: 'hf-fp16' })
    expect(listFolder(join(folder, 'hf'))).toEqual(
      expect.arrayContaining(['tokenizer.json', 'tokenizer_config.json', 'config.json']),
    )
    const warnings: CheckpointWarning[] = []
    const target = join(folder, 'x.gguf')
    await convert(source, target, { modelDir: join(folder, 'hf'), onWarning: (warning) => warnings.push(warning) })
    expect(warnings).toEqual([])
    const [tokenizer, own] = [
      await Tokenizer.fromFile(target),
      Tokenizer.fromJson(tinyTokenizerJson(), tinyTokenizerConfig()),
    ]
    const text = 'a b\n<|im_start|>é<|im_end|>'
    expect(tokenizer.encode(text)).toEqual(own.encode(text))
    expect(tokenizer).toMatchObject({ vocabSize: 259, eosTokenId: 258, padTokenId: 256 })
    expect(tokenizer.chatTemplate?.source).toBe(own.chatTemplate!.source)
    await using reader = await GgufReader.open(target)
    const { metadata } = reader
    expect(metadata.get('tokenizer.ggml.tokens')).toHaveLength(300)
    expect((metadata.get('tokenizer.ggml.tokens') as string[]).slice(256, 261)).toEqual([
      '<|endoftext|>',
      '<|im_start|>',
      '<|im_end|>',
      '[PAD259]',
      '[PAD260]',
    ])
    expect([...(metadata.get('tokenizer.ggml.token_type') as Int32Array).subarray(255, 260)]).toEqual([1, 3, 3, 3, 5])
    expect(metadata.get('tokenizer.ggml.add_bos_token')).toBe(false)
    expect(metadata.get('tokenizer.ggml.eos_token_id')).toBe(258)
    await convert(qwenlessCopy(middle, folder), join(folder, 'again.gguf'), quiet)
    expect((await Tokenizer.fromFile(join(folder, 'again.gguf'))).encode(text)).toEqual(own.encode(text))
  })

  test('of another kind, or none, is left out with a warning', async () => {
    const folder = temporaryFolder()
    const source = await denseSource(folder)
    const warned = async () => {
      const warnings: CheckpointWarning[] = []
      await convert(source, join(folder, 'x.gguf'), { onWarning: (warning) => warnings.push(warning) })
      return warnings.map(({ code, message }) => `${code} ${message}`)
    }
    writeFileSync(join(source, 'tokenizer.json'), JSON.stringify(tinyTokenizerJson()))
    expect(await warned()).toEqual([expect.stringMatching(/NO_TOKENIZER .*splits text in another way/)])
    writeFileSync(join(source, 'tokenizer.json'), '{}')
    expect(await warned()).toEqual([expect.stringMatching(/NO_TOKENIZER .*decoder/)])
    await expect(Tokenizer.fromFile(join(folder, 'x.gguf'))).rejects.toMatchObject({ code: 'TOKENIZER_INVALID' })
  })
})

/** Another name beside it, so that nothing but the file itself can have the tokenizer. */
function qwenlessCopy(path: string, folder: string): string {
  const copy = join(folder, 'copy.gguf')
  writeFileSync(copy, readFileSync(path))
  return copy
}

test('a model in memory becomes a GGUF', async () => {
  const folder = temporaryFolder()
  await using model = await Qwen3Nvfp4Model.initialize(ggufConfig, { seed: 5, threads: 1 })
  const { files } = await exportCheckpoint(model, join(folder, 'x.gguf'), { format: 'gguf', ...quiet })
  expect(files).toEqual([join(folder, 'x.gguf')])
  await using back = await Qwen3Nvfp4Model.load(files[0]!, { threads: 1 })
  expect(await back.parameter(q)!.read()).toEqual(await model.parameter(q)!.read())
  expect(listFolder(folder)).toEqual(['x.gguf'])
})

describe('whole or not at all', () => {
  test('an abort leaves nothing, and a file that was there', async () => {
    const folder = temporaryFolder()
    const source = await denseSource(folder)
    const target = join(folder, 'x.gguf')
    writeFileSync(target, 'before')
    const abort = new AbortController()
    const onProgress = ({ phase }: { phase: string }) => phase === 'verify' && abort.abort(new Error('enough'))
    await expect(convert(source, target, { ...quiet, signal: abort.signal, onProgress })).rejects.toThrow('enough')
    expect(listFolder(folder)).toEqual(['source', 'x.gguf'])
    expect(readFileSync(target, 'utf8')).toBe('before')
  })

  test('options of a .dat are refused, and q8_0 elsewhere', async () => {
    const run = (target: string, options: object) => convert('nowhere', target, options)
    await expect(run('x.gguf', { scales: 'one-level' })).rejects.toThrow(/about a .dat.* for scales/)
    await expect(run('x.gguf', { weights: 'q4_k' })).rejects.toThrow(/q8_0/)
    await expect(run('x.dat', { weights: 'q8_0' })).rejects.toThrow(/weights/)
    await expect(run('x', { format: 'hf-bf16', denseType: 'q8_0' })).rejects.toThrow(/denseType/)
    expect(existsSync('x.gguf')).toBe(false)
  })
})
