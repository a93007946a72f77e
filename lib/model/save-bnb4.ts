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
  if (!absmax?.absmaxForm || isOfMemory(absmax.absmaxForm)) return absmax !== undefined
  for await (const bytes of encodeAbsmax(stored.read(form, 'scales'), absmax)) if (!bytes) return false
  return true
}

/** Whether absmax lie in the file as in memory. */
const isOfMemory = ({ blockSize, nested }: AbsmaxForm): boolean => blockSize === block && !nested

/** The absmax of memory as an entry has them; undefined from where it cannot. */
async function* encodeAbsmax(
  pieces: AsyncIterable<Uint8Array>,
  { absmaxForm }: LayoutEntry,
): AsyncGenerator<Uint8Array | undefined> {
  if (!absmaxForm || isOfMemory(absmaxForm)) return yield* pieces
  const group = absmaxForm.blockSize / block
  const inverse = absmaxForm.nested && new NestedInverse(absmaxForm.nested)
  let begin = 0
  // Pieces are powers of two, so that groups, and groups of groups, lie in one.
  for await (const bytes of pieces) {
    const values = firstOfEqual(new Float32Array(bytes.slice().buffer), group)
    yield values && (inverse ? inverse.codes(values, begin) : new Uint8Array(values.buffer))
    begin += bytes.length / 4 / group
  }
}

/** The first of every `group` values, if all of each are the same. */
function firstOfEqual(values: Float32Array, group: number): Float32Array | undefined {
  if (group === 1) return values
  const first = new Float32Array(Math.ceil(values.length / group))
  for (let i = 0; i < values.length; i++) {
    const at = Math.floor(i / group)
    if (i % group === 0) first[at] = values[i]!
    else if (first[at] !== values[i]) return undefined
  }
  return first
}

/** Finds the codes whose map[code] · nested absmax + offset are given values: of two that stand for one, either. */
class NestedInverse {
  readonly #nested: Nested
  readonly #order: Uint8Array
  /** What the codes of `order` stand for in one block. */
  readonly #decoded = new Float32Array(256)

  constructor(nested: Nested) {
    this.#nested = nested
    this.#order = Uint8Array.from({ length: 256 }, (_, code) => code).sort((a, b) => nested.map[a]! - nested.map[b]!)
  }

  /** Of consecutive values, of which the first begins a block and is number `begin`. */
  codes(values: Float32Array, begin: number): Uint8Array | undefined {
    const { map, absmax, blockSize, offset } = this.#nested
    const codes = new Uint8Array(values.length)
    for (let i = 0; i < values.length; i++) {
      if (i % blockSize === 0) {
        const scale = absmax[(begin + i) / blockSize]!
        for (let place = 0; place < 256; place++) {
          this.#decoded[place] = Math.fround(map[this.#order[place]!]! * scale) + offset
        }
      }
      const place = this.#find(values[i]!)
      if (this.#decoded[place] !== values[i]) return undefined
      codes[i] = this.#order[place]!
    }
    return codes
  }

  /** The first place that is not below `value`, or the last one. */
  #find(value: number): number {
    let low = 0
    for (let step = 128; step > 0; step >>= 1) if (this.#decoded[low + step - 1]! < value) low += step
    return low
  }
}
