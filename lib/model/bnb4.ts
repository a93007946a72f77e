/** 4-bit weights of bitsandbytes: the tensors of one, and what is wrong with them. */
import type { Bnb4Part } from '../../types/checkpoint'
import type { DTypeName } from '../../types/format'
import { Qwen3Nvfp4Error } from '../errors'
import { bnb4BlockSizes } from '../format/bnb4'
import type { FoundParts, IndexedEntry } from './checkpoint-match'
import type { ParameterSpec } from './parameter-specs'

/** Beside the codes, which are `X.weight`: what follows X.weight, or X in files of the prior system. */
const suffixes = {
  absmax: ['.absmax'],
  quantMap: ['.quant_map'],
  quantState: ['.quant_state.bitsandbytes__nf4', '.quant_state.bitsandbytes__fp4'],
  nestedAbsmax: ['.nested_absmax'],
  nestedQuantMap: ['.nested_quant_map'],
} as const satisfies Record<Bnb4Part, readonly string[]>

/** Longest quantisation state that is read: those of bitsandbytes have some 200 bytes. */
const longestState = 65536

/** Element types that codes may have: with another `bnb_4bit_quant_storage` they are the same bytes. */
const codeTypes: readonly DTypeName[] = ['uint8', 'int8', 'bfloat16', 'float16', 'float32']

/** The parts of a bitsandbytes weight; undefined where the file has none beside `X.weight`. */
export function findBnb4(name: string, byKey: ReadonlyMap<string, IndexedEntry>): FoundParts | undefined {
  for (const stem of [name, name.replace(/\.weight$/, '')]) {
    const parts: FoundParts = {}
    for (const [part, names] of Object.entries(suffixes)) {
      const entry = names.map((suffix) => byKey.get(stem + suffix)).find((each) => each !== undefined)
      if (entry) parts[part as Bnb4Part] = entry
    }
    if (Object.keys(parts).length === 0) continue
    const codes = byKey.get(name)
    return { ...(codes && { codes }), ...parts }
  }
  return undefined
}

/** Whether `parts` are those of a bitsandbytes weight. */
export const isBnb4 = (parts: FoundParts): boolean =>
  (Object.keys(suffixes) as Bnb4Part[]).some((part) => parts[part] !== undefined)

/** Names that are needed and absent. A `.dat` may leave out the state that only double quantisation cannot do without. */
export function missingOfBnb4(name: string, parts: FoundParts, isDat: boolean): string[] {
  const one = Object.entries(suffixes).find(([part]) => parts[part as Bnb4Part])!
  const key = parts[one[0] as Bnb4Part]!.key
  const stem = key.slice(0, key.length - one[1].find((suffix) => key.endsWith(suffix))!.length)
  const isNested = parts.absmax?.dtype === 'uint8' || parts.nestedAbsmax !== undefined
  const needed: Bnb4Part[] = [
    'absmax',
    'quantMap',
    ...(isNested ? (['nestedAbsmax', 'nestedQuantMap'] as const) : []),
    ...(isNested || !isDat ? (['quantState'] as const) : []),
  ]
  const absent = needed.filter((part) => !parts[part]).map((part) => stem + suffixes[part][0])
  return [...(parts.codes ? [] : [name]), ...absent]
}

/** What a part must be, and its size in words. */
interface Rule {
  types: readonly DTypeName[]
  fits: (entry: IndexedEntry) => boolean
  size: string
}

/** What is wrong with types and sizes. Sizes count elements: files have codes as [n, 1], as [n] and as [N, K/2]. */
export function problemsOfBnb4(spec: ParameterSpec, parts: FoundParts, files: readonly string[]): Qwen3Nvfp4Error[] {
  const rules = Object.entries(rulesOf(spec, parts)) as ['codes' | Bnb4Part, Rule][]
  return rules.flatMap(([part, { types, fits, size }]) => {
    const entry = parts[part]
    const isType = entry && types.includes(entry.dtype)
    if (!entry || (isType && fits(entry))) return []
    const file = files[entry.file]!
    const received = `${entry.dtype}[${entry.shape.join(', ')}]`
    const message = `${file}: Expected ${isType ? size : types.join(' | ')} for ${entry.key} but received ${received}`
    const code = isType ? 'CHECKPOINT_SHAPE_MISMATCH' : 'CHECKPOINT_UNSUPPORTED_TYPE'
    return [new Qwen3Nvfp4Error(code, message, { file, key: entry.key })]
  })
}

function rulesOf({ rows, cols, isVector }: ParameterSpec, parts: FoundParts): Record<'codes' | Bnb4Part, Rule> {
  const count = rows * cols
  const packs = !isVector && count % 2 === 0
  const form = `parameter ${isVector ? `f32[${cols}]` : `[${rows}, ${cols}]`}`
  const blocks = parts.absmax ? elementsOf(parts.absmax) : 0
  const exactly = (types: readonly DTypeName[], elements: number): Rule => {
    return { types, fits: (entry) => elementsOf(entry) === elements, size: `${types[0]}[${elements}]` }
  }
  return {
    codes: {
      types: codeTypes,
      fits: ({ bytes }) => packs && bytes === count / 2,
      size: packs ? `two elements a byte, uint8[${count / 2}, 1], of ${form}` : `dense values of ${form}`,
    },
    absmax: {
      types: parts.nestedAbsmax ? ['uint8'] : ['float32', 'uint8'],
      fits: (entry) => blockSizeOf(count, elementsOf(entry)) !== undefined,
      size: `one for each block of 64 to 4096 elements of ${form}`,
    },
    nestedAbsmax: {
      types: ['float32'],
      fits: (entry) => blocks === 0 || blockSizeOf(blocks, elementsOf(entry)) !== undefined,
      size: `one for each 64 to 4096 of ${blocks} absmax`,
    },
    quantMap: exactly(['float32'], 16),
    nestedQuantMap: exactly(['float32'], 256),
    quantState: {
      types: ['uint8', 'int8'],
      fits: ({ bytes }) => bytes <= longestState,
      size: `at most ${longestState} bytes`,
    },
  }
}

export const elementsOf = ({ shape }: IndexedEntry): number => shape.reduce((product, dim) => product * dim, 1)

/** The block size by which `count` elements have so many blocks. */
export const blockSizeOf = (count: number, blocks: number): number | undefined =>
  bnb4BlockSizes.find((size) => Math.ceil(count / size) === blocks)
