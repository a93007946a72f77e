/**
 * Mutates valid GGUF files and opens them: node scripts/fuzz-gguf.mjs [seconds = 10] [seed = 1]
 *
 * Every outcome must be a file, an inspection and a tokenizer, or a Qwen3Nvfp4Error with a code of theirs, within a
 * second, having read no more than a small multiple of the file. Prints the seed and the case of a failure. Needs
 * `npm run build`.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { GgufReader, inspect, openCheckpoint, Qwen3Nvfp4Error, Tokenizer } from 'qwen3-nvfp4'
import { checkAllocated, countingSource, fuzz, mutatorOf, randomOf } from './fuzz-support.mjs'

const seconds = Number(process.argv[2] ?? 10)
const seed = Number(process.argv[3] ?? 1)
const folder = mkdtempSync(join(tmpdir(), 'qn-fuzz-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
const { below, mutateBytes, pick } = mutatorOf(randomOf(seed))

const codes = /^(GGUF|CHECKPOINT|CONFIG|TOKENIZER|CHAT_TEMPLATE)_/

const u32 = (value) => Buffer.from(Uint32Array.of(value).buffer)
const u64 = (value) => Buffer.from(BigUint64Array.of(BigInt(value)).buffer)
const text = (value) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)])
const number = (key, value) => Buffer.concat([text(key), u32(4), u32(value)])
const float = (key, value) => Buffer.concat([text(key), u32(6), Buffer.from(Float32Array.of(value).buffer)])
const string = (key, value) => Buffer.concat([text(key), u32(8), text(value)])
const strings = (key, values) => Buffer.concat([text(key), u32(9), u32(8), u64(values.length), ...values.map(text)])
const int32s = (key, values) =>
  Buffer.concat([text(key), u32(9), u32(5), u64(values.length), Buffer.from(Int32Array.from(values).buffer)])
const aligned = (length) => Math.ceil(length / 32) * 32
const pad = (bytes) => Buffer.concat([bytes, Buffer.alloc(aligned(bytes.length) - bytes.length)])

/** One layer; matrices of a type with `bytes` for 64 columns. */
function fileOf(type, bytes) {
  const tokens = Array.from({ length: 20 }, (_, i) => String.fromCharCode(97 + i))
  const metadata = [
    string('general.architecture', 'qwen3'),
    number('general.alignment', 32),
    number('qwen3.block_count', 1),
    number('qwen3.context_length', 64),
    number('qwen3.embedding_length', 64),
    number('qwen3.feed_forward_length', 64),
    number('qwen3.attention.head_count', 2),
    number('qwen3.attention.head_count_kv', 1),
    number('qwen3.attention.key_length', 32),
    float('qwen3.attention.layer_norm_rms_epsilon', 1e-6),
    float('qwen3.rope.freq_base', 1e6),
    string('tokenizer.ggml.model', 'gpt2'),
    string('tokenizer.ggml.pre', 'qwen2'),
    strings('tokenizer.ggml.tokens', tokens),
    int32s('tokenizer.ggml.token_type', [3, 4, 5, ...tokens.slice(3).map(() => 1)]),
    strings('tokenizer.ggml.merges', ['d e', 'f g']),
    number('tokenizer.ggml.eos_token_id', 1),
    string('tokenizer.chat_template', '{% for m in messages %}{{ m.content }}{% endfor %}'),
  ]
  const payload = []
  let offset = 0
  const tensors = []
  const add = (name, type, dims, length) => {
    const shape = [...dims].reverse().map(u64)
    tensors.push(Buffer.concat([text(name), u32(dims.length), ...shape, u32(type), u64(offset)]))
    payload.push(Buffer.alloc(aligned(length), 0x38))
    offset += aligned(length)
  }
  const matrix = (name, rows) => {
    add(`${name}.weight`, type, [rows, 64], rows * bytes)
    if (type === 40) add(`${name}.scale`, 0, [1], 4)
  }
  add('token_embd.weight', 1, [20, 64], 20 * 128)
  for (const name of ['attn_norm', 'ffn_norm']) add(`blk.0.${name}.weight`, 0, [64], 256)
  for (const name of ['attn_q_norm', 'attn_k_norm']) add(`blk.0.${name}.weight`, 0, [32], 128)
  for (const [name, rows] of Object.entries({ attn_q: 64, attn_k: 32, attn_v: 32, attn_output: 64 }))
    matrix(`blk.0.${name}`, rows)
  for (const name of ['ffn_gate', 'ffn_up', 'ffn_down']) matrix(`blk.0.${name}`, 64)
  add('output_norm.weight', 0, [64], 256)
  const head = Buffer.concat([Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(metadata.length)])
  const header = pad(Buffer.concat([head, ...metadata, ...tensors]))
  return { header, payload: Buffer.concat(payload) }
}

async function tryOne({ header, payload }) {
  const bytes = Buffer.concat([header, payload])
  const source = countingSource(bytes)
  const path = join(folder, 'x.gguf')
  writeFileSync(path, bytes)
  let valid = 0
  for (const open of [
    () => GgufReader.open(source),
    () => openCheckpoint(path, { strict: false }),
    () => inspect(path),
    async () => {
      const tokenizer = await Tokenizer.fromFile(path)
      tokenizer.decode(tokenizer.encode('abc de'))
    },
  ]) {
    try {
      await open()
      valid++
    } catch (error) {
      if (!(error instanceof Qwen3Nvfp4Error) || !codes.test(error.code)) throw error
    }
  }
  checkAllocated(source)
  return valid === 4
}

const corpus = [fileOf(40, 36), fileOf(8, 68), fileOf(30, 128), fileOf(0, 256)]
await fuzz({
  name: 'gguf: ',
  seconds,
  seed,
  make: () => {
    const { header, payload } = pick(corpus)
    let bytes = Uint8Array.from(header)
    for (let i = below(4); i >= 0; i--) bytes = mutateBytes(bytes)
    return { header: Buffer.from(bytes), payload }
  },
  attempt: tryOne,
  keep: ({ header, payload }) => ({ 'fuzz-gguf-failure.gguf': Buffer.concat([header, payload]) }),
})
