/**
 * Mutates valid Hugging Face directories and opens them:
 *   node scripts/fuzz-checkpoint.mjs [seconds = 10] [seed = 1] [part = any]
 *
 * The parts are a safetensors file, its index, config.json, generation_config.json, hf_quant_config.json, tokenizer.json,
 * tokenizer_config.json and the `state` of a bitsandbytes weight, of which each case changes one, or the one that is named, in
 * bytes or in meaning. Every outcome must be a checkpoint, an inspection or a tokenizer, or a Qwen3Nvfp4Error with a code of
 * theirs, within a second; a safetensors file may make no more be read than a small multiple of it; and no file outside the
 * folder may be opened. Prints the seed and the case of a failure. Needs `npm run build`.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  inspect,
  openCheckpoint,
  Qwen3Nvfp4Error,
  SafetensorsReader,
  Tokenizer,
  toConfigJson,
  writeSafetensors,
} from 'qwen3-nvfp4'
import { checkAllocated, countingSource, fuzz, mutatorOf, randomOf } from './fuzz-support.mjs'

const seconds = Number(process.argv[2] ?? 10)
const seed = Number(process.argv[3] ?? 1)
const part = process.argv[4]
const folder = mkdtempSync(join(tmpdir(), 'qn-fuzz-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
const { below, pick, mutateBytes, mutateJson } = mutatorOf(randomOf(seed))

const codes = /^(SAFETENSORS|CHECKPOINT|CONFIG|TOKENIZER|CHAT_TEMPLATE)_|^(IO_FAILED|FILE_TRUNCATED)$/

const config = {
  hiddenSize: 32,
  numHiddenLayers: 1,
  numAttentionHeads: 2,
  numKeyValueHeads: 1,
  headDim: 16,
  intermediateSize: 32,
  vocabSize: 20,
  ropeTheta: 1e6,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
  eosTokenIds: [3],
}

const nf4 = [
  -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022833334,
  -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
]

/** The first weight that is in 4 bits, and its quantisation state of bitsandbytes. */
const stateKey = 'model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4'
const stateOf = (shape) => ({
  quant_type: 'nf4',
  blocksize: 64,
  dtype: 'bfloat16',
  shape,
  nested_blocksize: 256,
  nested_dtype: 'float32',
  nested_offset: 0.03,
})
const bytesOf = (json) => Uint8Array.from(Buffer.from(JSON.stringify(json) ?? ''))

/** One layer; with `way` 'modelopt' or 'bitsandbytes' in their names and types. */
function tensorsOf(way) {
  const tensors = new Map()
  const dense = (name, ...shape) => {
    const data = new Uint16Array(shape.reduce((a, b) => a * b, 1)).fill(0x3f80)
    tensors.set(`${name}.weight`, { dtype: 'bfloat16', shape, data })
  }
  const matrix = (name, rows, cols) => {
    if (way === 'bitsandbytes') return bitsandbytes(`${name}.weight`, rows, cols)
    if (way === 'dense') return dense(name, rows, cols)
    const scales = new Uint8Array((rows * cols) / 16).fill(0x38)
    tensors.set(`${name}.weight`, { dtype: 'uint8', shape: [rows, cols / 2], data: new Uint8Array((rows * cols) / 2) })
    tensors.set(`${name}.weight_scale`, { dtype: 'float8_e4m3fn', shape: [rows, cols / 16], data: scales })
    tensors.set(`${name}.weight_scale_2`, { dtype: 'float32', shape: [], data: Float32Array.of(0.5) })
  }
  const bitsandbytes = (name, rows, cols) => {
    const bytes = (suffix, data) => tensors.set(name + suffix, { dtype: 'uint8', shape: [data.length], data })
    const floats = (suffix, data) => tensors.set(name + suffix, { dtype: 'float32', shape: [data.length], data })
    const count = rows * cols
    tensors.set(name, { dtype: 'uint8', shape: [count / 2, 1], data: new Uint8Array(count / 2).fill(0x5a) })
    bytes('.absmax', new Uint8Array(count / 64).fill(200))
    floats('.nested_absmax', new Float32Array(Math.ceil(count / 64 / 256)).fill(0.01))
    floats(
      '.nested_quant_map',
      Float32Array.from({ length: 256 }, (_, i) => (i - 127) / 128),
    )
    floats('.quant_map', Float32Array.from(nf4))
    bytes('.quant_state.bitsandbytes__nf4', bytesOf(stateOf([rows, cols])))
  }
  dense('model.embed_tokens', 20, 32)
  const layer = 'model.layers.0.'
  for (const name of ['input_layernorm', 'post_attention_layernorm']) dense(layer + name, 32)
  for (const name of ['q_norm', 'k_norm']) dense(`${layer}self_attn.${name}`, 16)
  for (const [name, rows] of Object.entries({ q: 32, k: 16, v: 16, o: 32 }))
    matrix(`${layer}self_attn.${name}_proj`, rows, 32)
  for (const name of ['gate', 'up', 'down']) matrix(`${layer}mlp.${name}_proj`, 32, 32)
  dense('model.norm', 32)
  return tensors
}

const shard = 'model-00001-of-00001.safetensors'

async function makeCorpus() {
  const corpus = []
  const quantizations = {
    dense: undefined,
    modelopt: { quant_method: 'modelopt', quant_algo: 'NVFP4', ignore: ['lm_head'] },
    bitsandbytes: { quant_method: 'bitsandbytes', load_in_4bit: true, bnb_4bit_quant_type: 'nf4' },
  }
  for (const [way, quantization] of Object.entries(quantizations)) {
    const tensors = tensorsOf(way)
    await writeSafetensors(join(folder, 'made.safetensors'), tensors, { metadata: { format: 'pt' } })
    const map = Object.fromEntries([...tensors.keys()].map((key) => [key, shard]))
    corpus.push({
      [shard]: readFileSync(join(folder, 'made.safetensors')),
      'model.safetensors.index.json': { metadata: { total_size: 1 }, weight_map: map },
      'config.json': { ...toConfigJson(config), ...(quantization && { quantization_config: quantization }) },
      'generation_config.json': { eos_token_id: [3, 4] },
      'hf_quant_config.json': { quantization: { quant_algo: 'NVFP4', group_size: 16, exclude_modules: ['lm_head'] } },
      'tokenizer.json': tokenizerJson(),
      'tokenizer_config.json': { chat_template: '{{ messages[0].content }}', eos_token: 'a' },
    })
  }
  return corpus
}

/** A byte-level tokenizer of a few letters. */
function tokenizerJson() {
  const vocab = Object.fromEntries(['a', 'b', 'c', 'ab', 'Ġ'].map((token, id) => [token, id]))
  return {
    version: '1.0',
    added_tokens: [
      { id: 5, content: '<|end|>', special: true, lstrip: false, rstrip: false, normalized: false, single_word: false },
    ],
    normalizer: { type: 'NFC' },
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
    post_processor: null,
    decoder: { type: 'ByteLevel' },
    model: { type: 'BPE', vocab, merges: [['a', 'b']] },
  }
}

const toBytes = (part) => (part instanceof Uint8Array ? Uint8Array.from(part) : Buffer.from(JSON.stringify(part)))

/** The header's JSON alone, its length put right, or any bytes of the file. */
function mutateSafetensors(file) {
  if (below(3) === 0) return mutateBytes(Uint8Array.from(file))
  const length = Number(file.readBigUInt64LE(0))
  const header = Buffer.from(JSON.stringify(mutateJson(JSON.parse(file.toString('utf8', 8, 8 + length)))))
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(BigInt(header.length))
  return Buffer.concat([prefix, header, file.subarray(8 + length)])
}

const hasState = (parts) => parts[shard].includes(stateKey)

/** The file with another JSON in a state, its header put right. */
function withState(file, state) {
  const length = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, 8 + length))
  const [begin, end] = header[stateKey].data_offsets
  const move = state.length - (end - begin)
  for (const { data_offsets: offsets } of Object.values(header)) {
    for (const i of [0, 1]) if (offsets?.[i] >= end) offsets[i] += move
  }
  header[stateKey] = { dtype: 'U8', shape: [state.length], data_offsets: [begin, begin + state.length] }
  const text = Buffer.from(JSON.stringify(header))
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(BigInt(text.length))
  const payload = file.subarray(8 + length)
  return Buffer.concat([prefix, text, payload.subarray(0, begin), state, payload.subarray(end)])
}

function mutate(part) {
  if (part instanceof Uint8Array) return mutateSafetensors(part)
  if (below(3) > 0) return Buffer.from(JSON.stringify(mutateJson(part)) ?? '')
  let bytes = toBytes(part)
  for (let i = below(3); i >= 0; i--) bytes = mutateBytes(bytes)
  return bytes
}

const corpus = await makeCorpus()
const names = [...Object.keys(corpus[0]), 'state']
if (part !== undefined && !names.includes(part)) throw new Error(`part is one of ${names.join(', ')}`)
const made = join(folder, 'case')
mkdirSync(made)
writeFileSync(join(folder, 'outside.safetensors'), readFileSync(join(folder, 'made.safetensors')))

/** What it opened must lie in the folder. */
function checkFiles(paths) {
  const outside = paths.find((path) => !path.startsWith(`${made}/`) || path.includes('..'))
  if (outside !== undefined) throw new Error(`opened ${outside}`)
}

async function allowed(work) {
  try {
    await work()
    return true
  } catch (error) {
    if (error instanceof Qwen3Nvfp4Error && codes.test(error.code)) return false
    throw error
  }
}

async function attempt({ changed, files }) {
  for (const [name, bytes] of Object.entries(files)) writeFileSync(join(made, name), bytes)
  if (changed.startsWith('tokenizer')) {
    return allowed(async () => {
      const tokenizer = await Tokenizer.fromFile(made)
      tokenizer.decode(tokenizer.encode('abc ab<|end|>'))
    })
  }
  if (changed === shard) {
    const source = countingSource(files[shard])
    await allowed(() => SafetensorsReader.open(source))
    checkAllocated(source)
  }
  const opened = await allowed(async () => checkFiles((await openCheckpoint(made)).files))
  await allowed(async () => checkFiles((await inspect(made)).files.map(({ path }) => path)))
  return opened
}

await fuzz({
  name: 'checkpoints: ',
  seconds,
  seed,
  make: () => {
    const parts = pick(part === 'state' ? corpus.filter(hasState) : corpus)
    const changed = part ?? pick([...Object.keys(parts), ...(hasState(parts) ? ['state', 'state'] : [])])
    const files = Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, toBytes(part)]))
    if (changed !== 'state') files[changed] = mutate(parts[changed])
    else files[shard] = withState(parts[shard], mutate(stateOf([32, 32])))
    return { changed: changed === 'state' ? shard : changed, files }
  },
  attempt,
  keep: ({ changed, files }) => ({ [`fuzz-checkpoint-failure-${changed}`]: files[changed] }),
})
