/** The only validators: misuse is `Expected {what} for {name} but received {actual}`. */

/** A short, safe rendering of any value for an error message. */
export function describe(value: unknown): string {
  if (value === null) return 'null'
  if (typeof value === 'string') return JSON.stringify(value.length > 60 ? `${value.slice(0, 57)}...` : value)
  if (typeof value === 'number' || typeof value === 'boolean' || typeof value === 'undefined') return String(value)
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value === 'function' || typeof value === 'symbol') return `a ${typeof value}`
  if (Array.isArray(value)) return `an array of ${value.length}`
  const name = (value as object).constructor?.name
  if (ArrayBuffer.isView(value)) return `${name} of ${value.byteLength} bytes`
  return name && name !== 'Object' ? `an instance of ${name}` : 'an object'
}

export function wrongType(what: string, name: string, actual: unknown): TypeError {
  return new TypeError(`Expected ${what} for ${name} but received ${describe(actual)}`)
}

export function wrongValue(what: string, name: string, actual: unknown): RangeError {
  return new RangeError(`Expected ${what} for ${name} but received ${describe(actual)}`)
}

export function checkInteger(name: string, value: unknown, min: number, max = Number.MAX_SAFE_INTEGER): number {
  if (typeof value !== 'number') throw wrongType('an integer', name, value)
  if (!Number.isInteger(value) || value < min || value > max) {
    const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`
    throw wrongValue(`an integer ${range}`, name, value)
  }
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

/** An options object, or undefined for none. */
export function checkOptions<T extends object>(value: T | undefined, name = 'options'): T {
  if (value === undefined) return {} as T
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrongType('an object', name, value)
  return value
}

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
