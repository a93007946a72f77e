/** What the values of flags may be. Each parser throws what was expected; commander adds the flag and what came. */
import { InvalidArgumentError, Option } from 'commander'
import { checkDevice, checkInteger, checkNumber, checkSeed, nearestName } from '../check'

type Parse<T> = (text: string) => T

/** A flag with a value; `parse` refuses bad ones. */
export function flag<T>(flags: string, description: string, parse?: (text: string, previous: never) => T): Option {
  const option = new Option(flags, description)
  return parse ? option.argParser(parse as (text: string) => T) : option
}

/** The library's own check of a value, without the name that it puts into its message. */
function checked<T>(check: (name: string) => T): T {
  try {
    return check('value')
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message.replace(/ for (value|device) but received .*$/s, '.'))
  }
}

/** The whole text must be a number: not '', '12px', '0x10' or 'Infinity'. */
const toNumber = (text: string) => (/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : NaN)

export const integer =
  (min: number, max?: number): Parse<number> =>
  (text) =>
    checked((name) => checkInteger(name, toNumber(text), min, max))

export const number =
  (range: { min?: number; above?: number; max?: number; below?: number } = {}): Parse<number> =>
  (text) =>
    checked((name) => checkNumber(name, toNumber(text), range))

export const seed: Parse<bigint> = (text) => checked((name) => checkSeed(name, /^\d+$/.test(text) ? BigInt(text) : NaN))

export const device: Parse<string> = (text) => checked(() => checkDevice(text))

export const oneOf =
  <T extends string>(...names: readonly T[]): Parse<T> =>
  (text) => {
    if ((names as readonly string[]).includes(text)) return text as T
    const nearest = nearestName(text, names)
    const hint = nearest === undefined ? '' : ` Did you mean ${nearest}?`
    throw new InvalidArgumentError(`Expected one of ${names.join(', ')}.${hint}`)
  }

/** Any text but none at all, which is a variable that a shell has not set. */
export const text: Parse<string> = (value) => {
  if (value === '') throw new InvalidArgumentError('Expected a text that is not empty.')
  return value
}

/** Values between commas. */
export const list =
  <T>(parse: Parse<T>): Parse<T[]> =>
  (value) =>
    value.split(',').map((item) => parse(item.trim()))

/** A flag that may be given several times. */
export const repeated =
  <T>(parse: Parse<T>) =>
  (value: string, previous: T[] = []): T[] => [...previous, parse(value)]

/** The values of some flags under the same names, without those that were not given. */
export function pick<T extends object, K extends keyof T>(flags: T, names: readonly K[]): Partial<Pick<T, K>> {
  const given = names.filter((name) => flags[name] !== undefined)
  return Object.fromEntries(given.map((name) => [name, flags[name]])) as Partial<Pick<T, K>>
}
