/**
 * Mutates valid .dat files and opens them: node scripts/fuzz-dat.mjs [seconds = 10] [seed = 1]
 *
 * Every outcome must be an index or a Qwen3Nvfp4Error with a DAT_ code, within a second, having allocated no more than
 * a small multiple of the file; and a file that opens must be written back byte for byte. Prints the seed and the case
 * of a failure. Needs `npm run build`.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { checkAllocated, countingSource, fuzz, mutatorOf, randomOf } from './fuzz-support.mjs'
import { DatReader, elementTypes, Qwen3Nvfp4Error, rewriteDat, writeDat } from 'qwen3-nvfp4/dat'

const seconds = Number(process.argv[2] ?? 10)
const seed = Number(process.argv[3] ?? 1)
const folder = mkdtempSync(join(tmpdir(), 'qn-fuzz-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))

const { below, mutateBytes, pick } = mutatorOf(randomOf(seed))

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

async function tryOne(bytes) {
  const source = countingSource(bytes)
  let opened = false
  try {
    const reader = await DatReader.open(source)
    opened = true
    checkAllocated(source)
    for (const { key, bytes: length } of reader.entries) {
      if ((await reader.readBytes(key)).length !== length) throw new Error(`short payload of ${key}`)
    }
  } catch (error) {
    if (opened || !(error instanceof Qwen3Nvfp4Error) || !error.code.startsWith('DAT_')) throw error
    checkAllocated(source, error)
  }
  if (!opened) return false
  await rewriteDat(bytes, join(folder, 'back.dat'))
  if (!readFileSync(join(folder, 'back.dat')).equals(bytes)) throw new Error('the rewrite differs')
  return true
}

const corpus = await makeCorpus()
await fuzz({
  name: '',
  seconds,
  seed,
  make: () => {
    let bytes = Uint8Array.from(pick(corpus))
    for (let i = below(4); i >= 0; i--) bytes = mutateBytes(bytes)
    return bytes
  },
  attempt: tryOne,
  keep: (bytes) => ({ 'fuzz-dat-failure.dat': bytes }),
})
