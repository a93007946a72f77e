/**
 * Mutates valid .dat files and opens them: node scripts/fuzz-dat.mjs [seconds = 10] [seed = 1]
 *
 * Every outcome must be an index or a Qwen3Nvfp4Error with a DAT_ code, within a second, having allocated no more than
 * a small multiple of the file; and a file that opens must be written back byte for byte. Prints the seed and the case
 * of a failure. Needs `npm run build`.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatReader, elementTypes, Qwen3Nvfp4Error, rewriteDat, writeDat } from 'qwen3-nvfp4/dat'

const seconds = Number(process.argv[2] ?? 10)
const seed = Number(process.argv[3] ?? 1)
const folder = mkdtempSync(join(tmpdir(), 'qn-fuzz-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))

/** mulberry32: the same cases for the same seed. */
let state = seed >>> 0
function random() {
  state = (state + 0x6d2b79f5) >>> 0
  let t = Math.imul(state ^ (state >>> 15), state | 1)
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296
}
const below = (limit) => Math.floor(random() * limit)

async function makeCorpus() {
  const tensors = (count, dims) =>
    new Map(
      Array.from({ length: count }, (_, i) => {
        const { id, bytes } = elementTypes[(i * 5) % elementTypes.length]
        const shape = Array.from({ length: i % dims }, (_, d) => 1 + ((i + d) % 5))
        const data = Uint8Array.from({ length: shape.reduce((a, b) => a * b, bytes) }, () => below(256))
        return [`model.layers.${i}.${'é'.repeat(i % 3)}weight`, { elementType: id, shape, data }]
      }),
    )
  const files = []
  for (const [count, dims] of [
    [0, 1],
    [1, 1],
    [3, 3],
    [40, 5],
    [200, 2],
  ]) {
    await writeDat(join(folder, 'corpus.dat'), tensors(count, dims))
    files.push(readFileSync(join(folder, 'corpus.dat')))
  }
  return files
}

const mutations = [
  (bytes) => bytes.with(below(bytes.length), below(256)),
  (bytes) => bytes.with(below(bytes.length), bytes[below(bytes.length)] ^ (1 << below(8))),
  (bytes) => bytes.slice(0, below(bytes.length + 1)),
  (bytes) => splice(bytes, below(bytes.length + 1), 0, randomBytes(1 + below(12))),
  (bytes) => splice(bytes, below(bytes.length), below(12), []),
  (bytes) => splice(bytes, below(Math.min(bytes.length, 64)), 1, hugeVarint()),
  (bytes) => splice(bytes, below(bytes.length), 0, bytes.slice(below(bytes.length)).slice(0, 64)),
]
const randomBytes = (length) => Array.from({ length }, () => below(256))
const hugeVarint = () => [...Array.from({ length: 1 + below(9) }, () => 128 + below(128)), below(128)]
const splice = (bytes, at, remove, insert) =>
  Uint8Array.from([...bytes.slice(0, at), ...insert, ...bytes.slice(at + remove)])

async function tryOne(bytes) {
  let allocated = 0
  const source = {
    name: 'fuzz',
    size: bytes.length,
    read: async (target, position) => {
      allocated += target.length
      const part = bytes.subarray(position, position + target.length)
      target.set(part)
      return part.length
    },
    close: async () => {},
  }
  const started = performance.now()
  let opened = false
  try {
    const reader = await DatReader.open(source)
    opened = true
    if (allocated > 3 * bytes.length + 65536) throw new Error(`allocated ${allocated} for ${bytes.length} bytes`)
    for (const { key, bytes: length } of reader.entries) {
      if ((await reader.readBytes(key)).length !== length) throw new Error(`short payload of ${key}`)
    }
  } catch (error) {
    if (opened || !(error instanceof Qwen3Nvfp4Error) || !error.code.startsWith('DAT_')) throw error
    if (allocated > 3 * bytes.length + 65536)
      throw new Error(`allocated ${allocated} for ${bytes.length} bytes`, { cause: error })
  }
  if (performance.now() - started > 1000) throw new Error('took more than a second')
  if (!opened) return false
  await rewriteDat(bytes, join(folder, 'back.dat'))
  if (!readFileSync(join(folder, 'back.dat')).equals(bytes)) throw new Error('the rewrite differs')
  return true
}

const corpus = await makeCorpus()
const end = Date.now() + seconds * 1000
let cases = 0
let valid = 0
while (Date.now() < end) {
  let bytes = Uint8Array.from(corpus[below(corpus.length)])
  for (let i = below(4); i >= 0; i--) if (bytes.length > 0) bytes = mutations[below(mutations.length)](bytes)
  try {
    if (await tryOne(bytes)) valid++
  } catch (error) {
    writeFileSync('fuzz-dat-failure.dat', bytes)
    console.error(`case ${cases} of seed ${seed} failed (kept as fuzz-dat-failure.dat):`, error)
    process.exit(1)
  }
  cases++
}
console.log(`${cases} cases of seed ${seed}: ${valid} still valid, the rest refused by code`)
