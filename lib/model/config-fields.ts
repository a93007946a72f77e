import { readFile } from 'node:fs/promises'
import { describe } from '../check'
import { ioError, Qwen3Nvfp4Error } from '../errors'

type Json = Record<string, unknown>

/** Ids and sizes fit the core's 32-bit token ids and keep every product of two below 2^53. */
export const maxDimension = 2 ** 26

/** Undefined for a file that is absent and may be. */
export async function readJson(file: string, optional = false): Promise<unknown> {
  let bytes: Uint8Array
  try {
    bytes = await readFile(file)
  } catch (cause) {
    if (optional && (cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw ioError('read', file, cause)
  }
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (cause) {
    const message = `${file}: not JSON: ${(cause as Error).message}`
    throw new Qwen3Nvfp4Error('CONFIG_INVALID', message, { cause, file })
  }
}

export function objectOf(json: unknown, file: string): Json {
  if (typeof json === 'object' && json !== null && !Array.isArray(json)) return json as Json
  throw invalid(file, 'a JSON object', 'the configuration', json)
}

/** Reads fields of a JSON object; null counts as absent, as in transformers. */
export class Fields {
  constructor(
    readonly json: Json,
    readonly file: string,
    readonly prefix = '',
  ) {}

  get(name: string): unknown {
    return Object.hasOwn(this.json, name) ? (this.json[name] ?? undefined) : undefined
  }

  has(name: string): boolean {
    return this.get(name) !== undefined
  }

  object(name: string): Fields {
    const value = this.get(name)
    if (typeof value !== 'object' || Array.isArray(value)) throw this.invalid(name, 'an object')
    return new Fields(value as Json, this.file, `${this.prefix}${name}.`)
  }

  integer(name: string, min: number, max: number, fallback?: number): number {
    const value = this.get(name) ?? fallback
    if (!Number.isSafeInteger(value) || (value as number) < min || (value as number) > max) {
      throw this.invalid(name, `an integer from ${min} to ${max}`, value)
    }
    return value as number
  }

  dimension(name: string, fallback?: number): number {
    return this.integer(name, 1, maxDimension, fallback)
  }

  text(name: string): string {
    const value = this.get(name)
    if (typeof value !== 'string') throw this.invalid(name, 'a string')
    return value
  }

  positive(name: string): number {
    const value = this.get(name)
    if (typeof value !== 'number' || !(value > 0) || !Number.isFinite(value))
      throw this.invalid(name, 'a positive number')
    return value
  }

  /** False when absent. */
  flag(name: string): boolean {
    const value = this.get(name) ?? false
    if (typeof value !== 'boolean') throw this.invalid(name, 'true or false')
    return value
  }

  invalid(name: string, expected: string, actual: unknown = this.get(name)): Qwen3Nvfp4Error {
    return invalid(this.file, expected, this.prefix + name, actual)
  }

  unsupported(name: string, expected: string, actual: unknown = this.get(name)): Qwen3Nvfp4Error {
    return invalid(this.file, expected, this.prefix + name, actual, 'CONFIG_UNSUPPORTED')
  }
}

function invalid(
  file: string,
  expected: string,
  name: string,
  actual: unknown,
  code: 'CONFIG_INVALID' | 'CONFIG_UNSUPPORTED' = 'CONFIG_INVALID',
): Qwen3Nvfp4Error {
  const received = actual === undefined ? 'nothing' : describe(actual)
  return new Qwen3Nvfp4Error(code, `${file}: Expected ${expected} for ${name} but received ${received}`, { file })
}
