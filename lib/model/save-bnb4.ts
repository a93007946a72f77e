/** How the bitsandbytes weights of a model are written into a `.dat`: as the file had them that they were loaded from. */
import type { AbsmaxForm, Bnb4Part, LayoutEntry, ParameterForm } from '../../types/checkpoint'
import { bnb4Nibbles, bnb4Tables, swapNibbles } from '../format/bnb4'
import { entryBytes, type PlannedEntry, type Remembered } from './save-entries'
import type { StoredParts } from './stored-parts'

type Nested = NonNullable<AbsmaxForm['nested']>

/** Elements of a block in memory. */
const block = 64

/**
 * The entries that were there, where the present absmax fits into them: one for each longer block, or twice quantised.
 * Else, and for what came from other files, codes, f32 absmax of every 64 elements, and the table.
 */
export async function bnb4Entries(
  stored: StoredParts,
  form: ParameterForm,
  remembered: Remembered,
): Promise<PlannedEntry[]> {
  const { name, rows, cols } = form
  const planned = (part: 'codes' | Bnb4Part, entry: LayoutEntry): PlannedEntry => {
    return { ...entry, parameter: name, part, form, bytes: entryBytes(entry) }
  }
  if (await fits(stored, form, remembered)) {
    return [...remembered].map(([part, entry]) => planned(part as Bnb4Part, entry))
  }
  const count = rows * cols
  const keyOf = (part: Bnb4Part, suffix: string) => remembered.get(part)?.key ?? `${name}${suffix}`
  const { nibbles = bnb4Nibbles } = remembered.get('codes') ?? {}
  const shapes = { codes: [count / 2, 1], absmax: [count / block], quantMap: [16] }
  const data = new Uint8Array(bnb4Tables[form.codebook!].slice().buffer)
  return [
    planned('codes', { key: name, elementType: 0, shape: shapes.codes, nibbles, ...remembered.get('codes') }),
    planned('absmax', { key: keyOf('absmax', '.absmax'), elementType: 6, shape: shapes.absmax }),
    planned('quantMap', { key: keyOf('quantMap', '.quant_map'), elementType: 6, shape: shapes.quantMap, data }),
  ]
}

/** The payload of a planned entry of a bitsandbytes weight, of which reading has begun. */
export function readBnb4Entry(
  stored: StoredParts,
  entry: PlannedEntry,
): AsyncIterable<Uint8Array> | Iterable<Uint8Array> {
  const form = entry.form!
  if (entry.data) return [entry.data]
  if (entry.part !== 'codes') return encodeAbsmax(stored.read(form, 'scales'), entry) as AsyncIterable<Uint8Array>
  const pieces = stored.read(form, 'codes')
  return entry.nibbles === 'low-first' ? pieces : swapped(pieces)
}

async function* swapped(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  for await (const bytes of pieces) yield swapNibbles(bytes)
}

async function fits(stored: StoredParts, form: ParameterForm, remembered: Remembered): Promise<boolean> {
  const absmax = remembered.get('absmax')
  if (!absmax) return false
  for await (const bytes of encodeAbsmax(stored.read(form, 'scales'), absmax)) if (!bytes) return false
  return true
}

/** The absmax of memory as an entry has them; undefined from where it cannot. */
async function* encodeAbsmax(
  pieces: AsyncIterable<Uint8Array>,
  { absmaxForm = { blockSize: block } }: LayoutEntry,
): AsyncGenerator<Uint8Array | undefined> {
  const { blockSize, nested } = absmaxForm
  const group = blockSize / block
  const inverse = nested && new NestedInverse(nested)
  let begin = 0
  // Pieces are powers of two, so that groups, and groups of groups, lie in one.
  for await (const bytes of pieces) {
    const values = new Float32Array(Uint8Array.from(bytes).buffer)
    const grouped = group === 1 ? values : firstOfEqual(values, group)
    yield grouped && (inverse ? inverse.codes(grouped, begin) : new Uint8Array(grouped.buffer))
    begin += Math.ceil(values.length / group)
  }
}

/** The first of every `group` values, if all of each are the same. */
function firstOfEqual(values: Float32Array, group: number): Float32Array | undefined {
  if (values.some((value, i) => value !== values[i - (i % group)])) return undefined
  return Float32Array.from({ length: Math.ceil(values.length / group) }, (_, i) => values[i * group]!)
}

/** Finds the codes whose map[code] · nested absmax + offset are given values: of two that stand for one, either. */
class NestedInverse {
  readonly #nested: Nested
  readonly #order: Uint8Array

  constructor(nested: Nested) {
    this.#nested = nested
    this.#order = Uint8Array.from({ length: 256 }, (_, code) => code).sort((a, b) => nested.map[a]! - nested.map[b]!)
  }

  /** Of consecutive values, of which the first is number `begin`. */
  codes(values: Float32Array, begin: number): Uint8Array | undefined {
    const codes = new Uint8Array(values.length)
    for (const [i, value] of values.entries()) {
      const code = this.#find(value, Math.floor((begin + i) / this.#nested.blockSize))
      if (code === undefined) return undefined
      codes[i] = code
    }
    return codes
  }

  #find(value: number, blockIndex: number): number | undefined {
    const { map, absmax, offset } = this.#nested
    const decode = (place: number) => Math.fround(Math.fround(map[this.#order[place]!]! * absmax[blockIndex]!) + offset)
    let low = 0
    let high = 255
    while (low < high) {
      const middle = (low + high) >> 1
      if (decode(middle) < value) low = middle + 1
      else high = middle
    }
    return decode(low) === value ? this.#order[low] : undefined
  }
}
