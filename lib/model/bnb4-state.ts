/** What the small tensors of a bitsandbytes weight say: its table, and the JSON that bitsandbytes writes beside it. */
import type { Bnb4Part, LayoutEntry, ParameterPart } from '../../types/checkpoint'
import type { NativeBnb4Source } from '../../types/native'
import type { Codebook, Nibbles } from '../../types/tensor'
import { describe } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { bnb4BlockSizes, bnb4Nibbles, codebookOf } from '../format/bnb4'
import { toFloat32 } from '../format/floats'
import { blockSizeOf, elementsOf } from './bnb4'
import type { CheckpointFiles } from './checkpoint-files'
import type { FoundParts } from './checkpoint-match'
import type { ParameterSpec } from './parameter-specs'

/** What the payloads of the small tensors say, and these payloads themselves, by which a `.dat` is written again. */
export interface Bnb4State extends Pick<NativeBnb4Source, 'codebook' | 'nibbles' | 'blockSize'> {
  nested?: Pick<NonNullable<NativeBnb4Source['nested']>, 'map' | 'blockSize' | 'offset'>
  data: Partial<Record<Bnb4Part, Uint8Array>>
}

/** What a layout remembers of one of its parts. */
export function layoutOfBnb4(
  { blockSize, nibbles, nested, data }: Bnb4State,
  part: ParameterPart,
): Partial<LayoutEntry> {
  if (part === 'codes') return { nibbles }
  if (part !== 'absmax') return { data: data[part as Bnb4Part] }
  const absmax = data.nestedAbsmax && toFloat32('float32', data.nestedAbsmax)
  return { absmaxForm: { blockSize, ...(nested && { nested: { ...nested, absmax: absmax! } }) } }
}

/**
 * Reads table and state of a weight whose parts have the right types and shapes. `nibbles` is for one without a state,
 * which does not say that bitsandbytes made it.
 */
export async function readBnb4State(
  files: CheckpointFiles,
  spec: ParameterSpec,
  parts: FoundParts,
  nibbles: Nibbles = bnb4Nibbles,
): Promise<Bnb4State> {
  const data: Bnb4State['data'] = {}
  for (const part of ['quantMap', 'quantState', 'nestedAbsmax', 'nestedQuantMap'] as const) {
    const entry = parts[part]
    if (entry) data[part] = await files.read(entry)
  }
  const where = (part: Bnb4Part) => ({ file: files.paths[parts[part]!.file]!, key: parts[part]!.key })
  const codebook = codebookIn(data.quantMap!, where('quantMap'))
  const blocks = elementsOf(parts.absmax!)
  const blockSize = blockSizeOf(spec.rows * spec.cols, blocks)!
  if (!data.quantState) return { codebook, nibbles, blockSize, data }

  const state = new QuantState(data.quantState, where('quantState'))
  state.expect('quant_type', [codebook])
  state.expectShape([spec.rows, spec.cols])
  const said = state.expect('blocksize', bnb4BlockSizes)
  if (Math.ceil((spec.rows * spec.cols) / said) !== blocks) {
    throw state.error(`${where('absmax').key} has ${blocks} values, which is not one for each ${said} elements`)
  }
  const stated = { codebook, nibbles: bnb4Nibbles, blockSize: said, data }
  if (!data.nestedAbsmax) return stated

  state.expect('nested_dtype', ['float32'])
  const size = state.expect('nested_blocksize', bnb4BlockSizes)
  const nestedBlocks = elementsOf(parts.nestedAbsmax!)
  if (Math.ceil(blocks / size) !== nestedBlocks) {
    throw state.error(
      `${where('nestedAbsmax').key} has ${nestedBlocks} values, which is not one for each ${size} of ${blocks}`,
    )
  }
  const map = toFloat32('float32', data.nestedQuantMap!)
  const odd = map.find((value) => !Number.isFinite(value))
  if (odd !== undefined) throw state.error(`${where('nestedQuantMap').key} has the value ${odd}`)
  return { ...stated, nested: { map, blockSize: size, offset: state.finite('nested_offset') } }
}

/** The table decides which codebook it is, and has to be exactly one of the two. */
function codebookIn(payload: Uint8Array, where: { file: string; key: string }): Codebook {
  const table = toFloat32('float32', payload)
  const codebook = codebookOf(table)
  if (codebook) return codebook
  const what = `the table of nf4 or of fp4 of bitsandbytes for ${where.key}`
  const message = `${where.file}: Expected ${what} but received ${Array.from(table).join(', ')}`
  throw new Qwen3Nvfp4Error('CHECKPOINT_BAD_QUANT_STATE', message, where)
}

/** The JSON in a `quant_state` tensor. */
class QuantState {
  readonly #where: { file: string; key: string }
  readonly #json: Record<string, unknown>

  constructor(payload: Uint8Array, where: { file: string; key: string }) {
    this.#where = where
    this.#json = this.#parse(payload)
  }

  expect<const T>(name: string, allowed: readonly T[]): T {
    const value = this.#get(name)
    const found = allowed.find((each) => each === value)
    if (found === undefined) throw this.#invalid(name, allowed.map((each) => JSON.stringify(each)).join(' | '))
    return found
  }

  expectShape(shape: readonly number[]): void {
    const value = this.#get('shape')
    const same = Array.isArray(value) && value.length === shape.length && shape.every((dim, i) => dim === value[i])
    if (same) return
    const isList = Array.isArray(value) && value.length < 10 && value.every((dim) => typeof dim === 'number')
    const received = isList ? `[${value.join(', ')}]` : describe(value)
    throw this.error(`Expected [${shape.join(', ')}] for shape but received ${received}`)
  }

  /** A number that an f32 holds. */
  finite(name: string): number {
    const value = this.#get(name)
    const rounded = typeof value === 'number' ? Math.fround(value) : NaN
    if (!Number.isFinite(rounded)) throw this.#invalid(name, 'a finite number')
    return rounded
  }

  error(message: string, cause?: unknown): Qwen3Nvfp4Error {
    const { file, key } = this.#where
    const details = { file, key, ...(cause !== undefined && { cause }) }
    return new Qwen3Nvfp4Error('CHECKPOINT_BAD_QUANT_STATE', `${file}: ${key}: ${message}`, details)
  }

  #parse(payload: Uint8Array): Record<string, unknown> {
    let json: unknown
    try {
      json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(payload))
    } catch (cause) {
      throw this.error(`not JSON: ${(cause as Error).message}`, cause)
    }
    if (typeof json === 'object' && json !== null && !Array.isArray(json)) return json as Record<string, unknown>
    throw this.error(`Expected a JSON object but received ${describe(json)}`)
  }

  #get(name: string): unknown {
    return Object.hasOwn(this.#json, name) ? this.#json[name] : undefined
  }

  #invalid(name: string, expected: string): Qwen3Nvfp4Error {
    const value = this.#get(name)
    return this.error(
      `Expected ${expected} for ${name} but received ${value === undefined ? 'nothing' : describe(value)}`,
    )
  }
}
