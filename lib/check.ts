/** The only validators: each returns the checked value; misuse is `Expected {what} for {name} but received {actual}`. */
import { types } from 'node:util'
import { fileURLToPath } from 'node:url'

// Typed arrays are told apart by util.types and their tag, never by instanceof: they may come from another realm
// (vm contexts, jest).
const dtypeOfTag: Record<string, string> = {
  Float64Array: 'f64',
  Float32Array: 'f32',
  Float16Array: 'f16',
  Int32Array: 'i32',
  Uint32Array: 'u32',
  Int16Array: 'i16',
  Uint16Array: 'u16',
  Int8Array: 'i8',
  Uint8Array: 'u8',
  Uint8ClampedArray: 'u8',
  BigInt64Array: 'i64',
  BigUint64Array: 'u64',
}

const arrayTag = (value: unknown): string | undefined =>
  types.isTypedArray(value) ? (value as unknown as { [Symbol.toStringTag]: string })[Symbol.toStringTag] : undefined

/** A short, safe rendering of any value for an error message: dtype and shape of arrays, never their contents. */
export function describe(value: unknown): string {
  if (value === null) return 'null'
  if (typeof value === 'string') return JSON.stringify(value.length > 60 ? `${value.slice(0, 57)}...` : value)
  if (typeof value === 'number' || typeof value === 'boolean' || typeof value === 'undefined') return String(value)
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value === 'function' || typeof value === 'symbol') return `a ${typeof value}`
  if (Array.isArray(value)) {
    return Array.isArray(value[0]) ? `an array of ${value.length} x ${value[0].length}` : `an array of ${value.length}`
  }
  const tag = arrayTag(value)
  if (tag) return `${dtypeOfTag[tag] ?? tag}[${(value as Uint8Array).length}]`
  const name = (value as object).constructor?.name
  return name && name !== 'Object' ? `an instance of ${name}` : 'an object'
}

/** The wrong kind of value. */
export function wrongType(what: string, name: string, actual: unknown): TypeError {
  return new TypeError(`Expected ${what} for ${name} but received ${describe(actual)}`)
}

/** The right kind, but not an allowed value. */
export function wrongValue(what: string, name: string, actual: unknown): RangeError {
  return new RangeError(`Expected ${what} for ${name} but received ${describe(actual)}`)
}

/** The right kind, but another shape, which the caller has already put in words. */
export function wrongShape(what: string, name: string, actual: string): RangeError {
  return new RangeError(`Expected ${what} for ${name} but received ${actual}`)
}

/** The candidate with the fewest edits from `word` (Levenshtein), if it is close enough to have been meant. */
export function nearestName(word: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined
  let bestEdits = Math.max(2, Math.floor(word.length / 2)) + 1
  for (const candidate of candidates) {
    const a = word.toLowerCase()
    const b = candidate.toLowerCase()
    let row = Array.from({ length: b.length + 1 }, (_, j) => j)
    for (let i = 1; i <= a.length; i++) {
      const next = [i]
      for (let j = 1; j <= b.length; j++) {
        next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1))
      }
      row = next
    }
    if (row[b.length]! < bestEdits) {
      bestEdits = row[b.length]!
      best = candidate
    }
  }
  return best
}

/** An options object, or undefined for none. With `allowed`, a key outside it is refused by its nearest right name. */
export function checkOptions<T extends object>(
  value: T | undefined,
  name = 'options',
  allowed?: readonly (keyof T & string)[],
): T {
  if (value === undefined) return {} as T
  if (typeof value !== 'object' || value === null || Array.isArray(value) || types.isTypedArray(value)) {
    throw wrongType('an object', name, value)
  }
  for (const key of allowed ? Object.keys(value) : []) {
    if ((allowed as readonly string[]).includes(key)) continue
    const nearest = nearestName(key, allowed!)
    const hint = nearest ? `; did you mean ${nearest}?` : ''
    throw new TypeError(`Expected one of ${allowed!.join(', ')} for a key of ${name} but received ${key}${hint}`)
  }
  return value
}

export function checkInteger(name: string, value: unknown, min: number, max = Number.MAX_SAFE_INTEGER): number {
  if (typeof value !== 'number') throw wrongType('an integer', name, value)
  if (!Number.isSafeInteger(value) || value < min || value > max) {
    const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`
    throw wrongValue(`an integer ${range}`, name, value)
  }
  return value
}

/** A finite number within [min, max], or (above, below) where an end is open. */
export function checkNumber(
  name: string,
  value: unknown,
  range: { min?: number; above?: number; max?: number; below?: number } = {},
): number {
  const { min, above, max, below } = range
  const low = min !== undefined ? `of at least ${min}` : above !== undefined ? `above ${above}` : ''
  const high = max !== undefined ? `at most ${max}` : below !== undefined ? `below ${below}` : ''
  const what = ['a finite number', [low, high].filter(Boolean).join(' and ')].join(' ').trim()
  if (typeof value !== 'number') throw wrongType(what, name, value)
  const inside =
    Number.isFinite(value) &&
    value >= (min ?? -Infinity) &&
    value > (above ?? -Infinity) &&
    value <= (max ?? Infinity) &&
    value < (below ?? Infinity)
  if (!inside) throw wrongValue(what, name, value)
  return value
}

/** A 64-bit seed. */
export function checkSeed(name: string, value: unknown): bigint {
  const what = 'an integer or bigint from 0 to 2^64 - 1'
  if (typeof value !== 'bigint' && typeof value !== 'number') throw wrongType(what, name, value)
  if (typeof value === 'number' && !Number.isSafeInteger(value)) throw wrongValue(what, name, value)
  const seed = BigInt(value)
  if (seed < 0n || seed >= 1n << 64n) throw wrongValue(what, name, value)
  return seed
}

export function checkBoolean(name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw wrongType('a boolean', name, value)
  return value
}

export function checkString(name: string, value: unknown): string {
  if (typeof value !== 'string') throw wrongType('a string', name, value)
  if (value === '') throw wrongValue('a non-empty string', name, value)
  return value
}

export function checkOneOf<T extends string>(name: string, value: unknown, allowed: readonly T[]): T {
  const list = allowed.map((item) => `'${item}'`).join(' | ')
  if (typeof value !== 'string') throw wrongType(list, name, value)
  if (!(allowed as readonly string[]).includes(value)) throw wrongValue(list, name, value)
  return value as T
}

/** The name of a device. */
export function checkDevice(value: unknown): string {
  checkString('device', value)
  if (!/^(cpu|cuda:\d+)$/.test(value as string)) throw wrongValue("'cpu' or 'cuda:N'", 'device', value)
  return value as string
}

/** A file path: a string or a file: URL. */
export function checkPath(name: string, value: unknown): string {
  if (Object.prototype.toString.call(value) === '[object URL]') return fileURLToPath(value as URL)
  if (typeof value !== 'string') throw wrongType('a path', name, value)
  if (value === '' || value.includes('\0')) throw wrongValue('a path', name, value)
  return value
}

/** An AbortSignal of any realm: what matters is that it can be listened to. */
export function checkSignal(value: unknown, name = 'signal'): AbortSignal | undefined {
  if (value === undefined) return undefined
  if (!(typeof value === 'object' && value !== null && 'aborted' in value && 'addEventListener' in value)) {
    throw wrongType('an AbortSignal', name, value)
  }
  return value as AbortSignal
}

export function checkFunction<T>(name: string, value: T): T {
  if (value !== undefined && typeof value !== 'function') throw wrongType('a function', name, value)
  return value
}

export function checkShape(name: string, value: unknown): number[] {
  if (!Array.isArray(value)) throw wrongType('an array of dimensions', name, value)
  return value.map((dim, i) => checkInteger(`${name}[${i}]`, dim, 0))
}

/** A Float32Array whose length is the product of `shape`. */
export function checkFloat32(name: string, value: unknown, shape: readonly number[]): Float32Array {
  const what = `f32[${shape.join(', ')}]`
  if (arrayTag(value) !== 'Float32Array') throw wrongType(what, name, value)
  const array = value as Float32Array
  if (array.length !== shape.reduce((product, dim) => product * dim, 1)) throw wrongValue(what, name, value)
  return array
}

/** A Uint8Array (a Buffer is one), of `length` bytes when given. */
export function checkUint8(name: string, value: unknown, length?: number): Uint8Array {
  const what = `u8[${length ?? '...'}]`
  if (arrayTag(value) !== 'Uint8Array') throw wrongType(what, name, value)
  const array = value as Uint8Array
  if (length !== undefined && array.length !== length) throw wrongValue(what, name, value)
  return array
}

/** Whether a value is a list of numbers as checkInt32Values takes it: an Int32Array or an array. */
export const isIntegerList = (value: unknown): value is ArrayLike<unknown> =>
  Array.isArray(value) || arrayTag(value) === 'Int32Array'

/** Integers, copied to an Int32Array, each from min to max, or equal to `also`; names the first that is not. */
export function checkInt32Values(name: string, value: unknown, min: number, max: number, also?: number): Int32Array {
  if (!isIntegerList(value)) throw wrongType('an Int32Array or an array of integers', name, value)
  const result = new Int32Array(value.length)
  for (let i = 0; i < value.length; i++) {
    const item = value[i]
    if (typeof item === 'number' && item === also) {
      result[i] = item
    } else if (typeof item !== 'number' || !Number.isInteger(item) || item < min || item > max) {
      const what = `an integer from ${min} to ${max}${also === undefined ? '' : ` or ${also}`}`
      throw (typeof item === 'number' ? wrongValue : wrongType)(what, `${name}[${i}]`, item)
    } else {
      result[i] = item
    }
  }
  return result
}
