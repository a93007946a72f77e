/** Checkpoints with the 4-bit weights of bitsandbytes, encoded and decoded here from its definitions, without the library. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DatTensor, DTypeName, Qwen3Config, SafetensorsTensor } from 'qwen3-nvfp4'
import { toConfigJson, writeDat, writeSafetensors } from 'qwen3-nvfp4'
import { CODEBOOKS, type CodebookName } from './bnb4'
import { shapesOf } from './dense-directory'
import { gaussian } from './random'

const { abs, ceil, fround, max } = Math

/** Rows of whole blocks everywhere, of one to three. */
export const bnb4Config: Qwen3Config = {
  hiddenSize: 64,
  numHiddenLayers: 2,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 32,
  intermediateSize: 192,
  vocabSize: 96,
  ropeTheta: 1e6,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
  eosTokenIds: [2],
}

export interface Bnb4Way {
  codebook: CodebookName
  /** Double quantisation. */
  nested?: boolean
  blockSize?: number
  /** bitsandbytes writes 'high-first'. */
  nibbles?: 'high-first' | 'low-first'
  /** Without it a file does not say that bitsandbytes made it. */
  state?: boolean
  /** What companions are named after: `X.weight` or `X`. */
  stem?: '.weight' | ''
}

export interface Encoded {
  codes: Uint8Array
  absmax: Float32Array | Uint8Array
  nested?: { map: Float32Array; absmax: Float32Array; offset: number }
  /** What the file stands for. */
  values: Float32Array
}

/** The 256 numbers that bitsandbytes quantises absmax to (create_dynamic_map): finer towards zero. */
export function dynamicMap(): Float32Array {
  const numbers = [0, 1]
  for (let i = 0; i < 7; i++) {
    const items = 2 ** i
    for (let k = 0; k < items; k++) {
      const mean = 0.1 + (0.9 * (k + 0.5)) / items
      numbers.push(10 ** (i - 6) * mean, -(10 ** (i - 6)) * mean)
    }
  }
  return Float32Array.from(numbers).sort()
}

const nearest = (table: Float64Array, x: number): number => {
  let best = 0
  for (let i = 1; i < table.length; i++) if (abs(table[i]! - x) < abs(table[best]! - x)) best = i
  return best
}

/** The largest magnitude of every `size` values. */
function largest(values: Float32Array, size: number): Float32Array {
  return Float32Array.from({ length: ceil(values.length / size) }, (_, b) =>
    values.subarray(b * size, (b + 1) * size).reduce((most, value) => max(most, abs(value)), 0),
  )
}

export function encodeBnb4(values: Float32Array, way: Bnb4Way): Encoded {
  const { codebook, blockSize = 64, nibbles = 'high-first' } = way
  const table = Float64Array.from(CODEBOOKS[codebook])
  const absmax = largest(values, blockSize)
  const codes = new Uint8Array(values.length)
  for (let i = 0; i < codes.length; i++) {
    const scale = absmax[Math.floor(i / blockSize)]!
    codes[i] = nearest(table, scale === 0 ? 0 : values[i]! / scale)
  }
  const bytes = Uint8Array.from({ length: ceil(values.length / 2) }, (_, i) => {
    const [first, second] = [codes[2 * i]!, codes[2 * i + 1] ?? 0]
    return nibbles === 'high-first' ? first * 16 + second : second * 16 + first
  })
  const twice = way.nested ? encodeTwice(absmax) : undefined
  const used = twice?.decoded ?? absmax
  const decoded = new Float32Array(values.length)
  for (let i = 0; i < codes.length; i++) decoded[i] = table[codes[i]!]! * used[Math.floor(i / blockSize)]!
  if (!twice) return { codes: bytes, absmax, values: decoded }
  const { codes: bytesOfAbsmax, nested } = twice
  return { codes: bytes, absmax: bytesOfAbsmax, nested, values: decoded }
}

/** absmax less its mean, in blocks of 256 under the dynamic map. */
function encodeTwice(absmax: Float32Array) {
  const map = dynamicMap()
  const offset = fround(absmax.reduce((sum, value) => sum + value, 0) / absmax.length)
  const centred = absmax.map((value) => value - offset)
  const scales = largest(centred, 256)
  const wide = Float64Array.from(map)
  const codes = Uint8Array.from(centred, (value, i) => nearest(wide, value / (scales[i >> 8]! || 1)))
  const decoded = Float32Array.from(codes, (code, i) => fround(fround(map[code]! * scales[i >> 8]!) + offset))
  return { codes, nested: { map, absmax: scales, offset }, decoded }
}

interface Tensor {
  dtype: DTypeName
  shape: number[]
  data: Float32Array | Uint8Array
}

/** The JSON that bitsandbytes packs into a tensor, in its order. */
export function quantState(way: Bnb4Way, shape: readonly number[], offset?: number): Record<string, unknown> {
  const { codebook, blockSize = 64 } = way
  const nested = { nested_blocksize: 256, nested_dtype: 'float32', nested_offset: offset }
  return { quant_type: codebook, blocksize: blockSize, dtype: 'bfloat16', shape, ...(way.nested && nested) }
}

/** A weight as its tensors. */
export function bnb4Entries(
  name: string,
  shape: readonly number[],
  encoded: Encoded,
  way: Bnb4Way,
): [string, Tensor][] {
  const stem = way.stem === '' ? name.replace(/\.weight$/, '') : name
  const { codes, absmax, nested } = encoded
  const entries: [string, Tensor][] = [
    [name, { dtype: 'uint8', shape: [codes.length, 1], data: codes }],
    [`${stem}.absmax`, { dtype: way.nested ? 'uint8' : 'float32', shape: [absmax.length], data: absmax }],
  ]
  const floats = (suffix: string, data: Float32Array) =>
    entries.push([stem + suffix, { dtype: 'float32', shape: [data.length], data }])
  if (nested) floats('.nested_absmax', nested.absmax)
  if (nested) floats('.nested_quant_map', nested.map)
  floats('.quant_map', Float32Array.from(CODEBOOKS[way.codebook]))
  if (way.state === false) return entries
  const data = Buffer.from(JSON.stringify(quantState(way, shape, nested?.offset)))
  const key = `${stem}.quant_state.bitsandbytes__${way.codebook}`
  return [...entries, [key, { dtype: 'uint8', shape: [data.length], data: Uint8Array.from(data) }]]
}

export interface DenseTensor {
  shape: number[]
  values: Float32Array
}

/** Names to fp32 values of a configuration. */
export function denseValues(config: Qwen3Config = bnb4Config): Map<string, DenseTensor> {
  const entries = [...shapesOf(config)].map(([name, shape], i): [string, DenseTensor] => {
    const count = shape.reduce((a, b) => a * b, 1)
    return [name, { shape, values: gaussian(count, shape.length === 1 ? 1 : 0.08, i + 1) }]
  })
  return new Map(entries)
}

const isEncoded = (name: string) => name.includes('_proj')

export interface Bnb4Checkpoint {
  tensors: Map<string, Tensor>
  /** What it stands for. */
  values: Map<string, DenseTensor>
}

const made = new Map<string, Bnb4Checkpoint>()

/** The same seeded checkpoint with its projections in 4 bits, of which the caller may change anything. */
export function bnb4Tensors(way: Bnb4Way): Bnb4Checkpoint {
  const key = JSON.stringify(way)
  const { tensors, values } = made.get(key) ?? encodeModel(way, denseValues())
  made.set(key, { tensors, values })
  const copies = [...tensors].map(([name, tensor]) => [name, { ...tensor, data: tensor.data.slice() }] as const)
  return { tensors: new Map(copies), values }
}

/** The tensors of given values, those that `encodes` names in 4 bits. */
export function encodeModel(
  way: Bnb4Way,
  dense: ReadonlyMap<string, DenseTensor>,
  encodes = isEncoded,
): Bnb4Checkpoint {
  const tensors = new Map<string, Tensor>()
  const values = new Map<string, DenseTensor>()
  for (const [name, { shape, values: exact }] of dense) {
    const encoded = encodes(name) ? encodeBnb4(exact, way) : undefined
    values.set(name, { shape, values: encoded?.values ?? exact })
    if (!encoded) tensors.set(name, { dtype: 'float32', shape, data: exact })
    else for (const [key, tensor] of bnb4Entries(name, shape, encoded, way)) tensors.set(key, tensor)
  }
  return { tensors, values }
}

/** As transformers writes it beside such weights. */
export const bnb4Quantization = ({ codebook, nested = false }: Bnb4Way): Record<string, unknown> => ({
  _load_in_4bit: true,
  _load_in_8bit: false,
  bnb_4bit_compute_dtype: 'bfloat16',
  bnb_4bit_quant_storage: 'uint8',
  bnb_4bit_quant_type: codebook,
  bnb_4bit_use_double_quant: nested,
  llm_int8_enable_fp32_cpu_offload: false,
  llm_int8_has_fp16_weight: false,
  llm_int8_skip_modules: null,
  llm_int8_threshold: 6.0,
  load_in_4bit: true,
  load_in_8bit: false,
  quant_method: 'bitsandbytes',
})

export async function writeBnb4Directory(
  folder: string,
  tensors: ReadonlyMap<string, Tensor>,
  quantization?: Record<string, unknown>,
  config = bnb4Config,
): Promise<string> {
  mkdirSync(folder, { recursive: true })
  await writeSafetensors(join(folder, 'model.safetensors'), tensors as ReadonlyMap<string, SafetensorsTensor>)
  const json = { ...toConfigJson(config), ...(quantization && { quantization_config: quantization }) }
  writeFileSync(join(folder, 'config.json'), JSON.stringify(json))
  return folder
}

export async function writeBnb4Dat(
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
  config = bnb4Config,
): Promise<string> {
  const ids: Partial<Record<DTypeName, number>> = { uint8: 0, float16: 5, float32: 6, bfloat16: 15, float8_e4m3fn: 101 }
  const entries = [...tensors].map(([key, { dtype, shape, data }]): [string, DatTensor] => {
    return [key, { elementType: ids[dtype]!, shape, data }]
  })
  await writeDat(path, new Map(entries))
  writeFileSync(path.replace(/\.dat$/, '.config.json'), JSON.stringify(toConfigJson(config)))
  return path
}

/** The values of a checkpoint as dense fp32 safetensors. */
export async function writeValues(
  folder: string,
  values: ReadonlyMap<string, DenseTensor>,
  config = bnb4Config,
): Promise<string> {
  const tensors = [...values].map(([name, { shape, values: data }]): [string, Tensor] => {
    return [name, { dtype: 'float32', shape, data }]
  })
  return writeBnb4Directory(folder, new Map(tensors), undefined, config)
}
