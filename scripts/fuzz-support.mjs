/** What the fuzz targets share: seeded random numbers, mutations of bytes and of JSON, and the loop. */
import { writeFileSync } from 'node:fs'

/** mulberry32: the same cases for the same seed. */
export function randomOf(seed) {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

export function mutatorOf(random) {
  const below = (limit) => Math.floor(random() * limit)
  const pick = (items) => items[below(items.length)]
  const randomBytes = (length) => Array.from({ length }, () => below(256))
  const hugeVarint = () => [...Array.from({ length: 1 + below(9) }, () => 128 + below(128)), below(128)]
  const splice = (bytes, at, remove, insert) =>
    Uint8Array.from([...bytes.slice(0, at), ...insert, ...bytes.slice(at + remove)])

  const ofBytes = [
    (bytes) => bytes.with(below(bytes.length), below(256)),
    (bytes) => bytes.with(below(bytes.length), bytes[below(bytes.length)] ^ (1 << below(8))),
    (bytes) => bytes.slice(0, below(bytes.length + 1)),
    (bytes) => splice(bytes, below(bytes.length + 1), 0, randomBytes(1 + below(12))),
    (bytes) => splice(bytes, below(bytes.length), below(12), []),
    (bytes) => splice(bytes, below(Math.min(bytes.length, 64)), 1, hugeVarint()),
    (bytes) => splice(bytes, below(bytes.length), 0, bytes.slice(below(bytes.length)).slice(0, 64)),
  ]

  const nested = (depth) => JSON.parse('['.repeat(depth) + ']'.repeat(depth))
  const oddValues = [
    () => pick([-1, 0, 1, 0.5, -0, 2 ** 31, 2 ** 32, 2 ** 53, 2 ** 53 - 1, -(2 ** 53), 1e308, 5e-324, 16, 17]),
    () => pick(['', '..', '../../etc/passwd', '/etc/passwd', 'a\0b', '__proto__', 'constructor', 'é\ud800', 'F32']),
    () => pick([null, true, false, [], {}, [[]], [null], { a: 1 }]),
    () => nested(1 + below(3000)),
    () => 'x'.repeat(below(5000)),
    () => Array.from({ length: below(300) }, () => below(1000)),
  ]
  const oddValue = () => pick(oddValues)()

  /** A copy of `json` of which one value somewhere, or one name, is another. */
  function mutateJson(json) {
    const copy = globalThis.structuredClone(json)
    const places = []
    const visit = (value) => {
      if (typeof value !== 'object' || value === null || places.length > 2000) return
      for (const key of Object.keys(value)) {
        places.push([value, key])
        visit(value[key])
      }
    }
    visit(copy)
    if (places.length === 0) return oddValue()
    const [owner, key] = pick(places)
    const what = below(5)
    if (what === 0) delete owner[key]
    else if (what === 1 && Array.isArray(owner)) owner.push(owner[key])
    else if (what === 1) Object.defineProperty(owner, String(oddValue()), field(owner[key]))
    else if (what === 2) owner[key] = globalThis.structuredClone(pick(places)[0])
    else owner[key] = oddValue()
    return copy
  }
  const field = (value) => ({ value, enumerable: true, configurable: true, writable: true })

  const mutateBytes = (bytes) => (bytes.length > 0 ? pick(ofBytes)(bytes) : bytes)
  return { below, pick, mutateBytes, mutateJson }
}

/** A source of these bytes that counts in `allocated` what it was asked to fill. */
export function countingSource(bytes) {
  const source = {
    allocated: 0,
    name: 'fuzz',
    size: bytes.length,
    read: async (target, position) => {
      source.allocated += target.length
      const part = bytes.subarray(position, position + target.length)
      target.set(part)
      return part.length
    },
    close: async () => {},
  }
  return source
}

/** Throws when more was asked for than a small multiple of the file. */
export function checkAllocated({ allocated, size }, cause) {
  if (allocated > 3 * size + 65536) throw new Error(`allocated ${allocated} for ${size} bytes`, { cause })
}

/**
 * Tries cases until the time is over. `make` gives one, `attempt` whether it was valid; it throws when something is wrong,
 * and then the case is kept, its number and seed are printed, and the process ends with code 1.
 */
export async function fuzz({ name, seconds, seed, make, attempt, keep }) {
  const end = Date.now() + seconds * 1000
  let cases = 0
  let valid = 0
  for (; Date.now() < end; cases++) {
    const input = make()
    const used = process.cpuUsage()
    try {
      if (await attempt(input)) valid++
      // Of processor time: others may use the machine too.
      const { user, system } = process.cpuUsage(used)
      if (user + system > 1e6) throw new Error('took more than a second')
    } catch (error) {
      for (const [file, bytes] of Object.entries(keep(input))) writeFileSync(file, bytes)
      console.error(`case ${cases} of seed ${seed} failed (kept as ${Object.keys(keep(input)).join(', ')}):`, error)
      process.exit(1)
    }
  }
  console.log(`${name}${cases} cases of seed ${seed}: ${valid} still valid, the rest refused by code`)
}
