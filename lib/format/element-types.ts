import type { DTypeName, TensorData } from '../../types/format'

export interface ElementType {
  readonly id: number
  readonly dtype: DTypeName
  /** Bytes of one element. */
  readonly bytes: number
}

/**
 * Element types of a `.dat`: PyTorch's ScalarType ids, and 100/101 of the prior system's NVFP4 exporter.
 * The shape of a float4_e2m1fn_x2 tensor counts bytes, each holding two codes.
 */
export const elementTypes: readonly ElementType[] = [
  { id: 0, dtype: 'uint8', bytes: 1 },
  { id: 1, dtype: 'int8', bytes: 1 },
  { id: 2, dtype: 'int16', bytes: 2 },
  { id: 3, dtype: 'int32', bytes: 4 },
  { id: 4, dtype: 'int64', bytes: 8 },
  { id: 5, dtype: 'float16', bytes: 2 },
  { id: 6, dtype: 'float32', bytes: 4 },
  { id: 7, dtype: 'float64', bytes: 8 },
  { id: 8, dtype: 'complex32', bytes: 4 },
  { id: 9, dtype: 'complex64', bytes: 8 },
  { id: 10, dtype: 'complex128', bytes: 16 },
  { id: 11, dtype: 'bool', bytes: 1 },
  { id: 12, dtype: 'qint8', bytes: 1 },
  { id: 13, dtype: 'quint8', bytes: 1 },
  { id: 14, dtype: 'qint32', bytes: 4 },
  { id: 15, dtype: 'bfloat16', bytes: 2 },
  { id: 100, dtype: 'float4_e2m1fn_x2', bytes: 1 },
  { id: 101, dtype: 'float8_e4m3fn', bytes: 1 },
]

const byId = new Map(elementTypes.map((type) => [type.id, type]))
const byName = new Map<string, ElementType>(elementTypes.map((type) => [type.dtype, type]))

/** The element type of an id or a name; undefined when a `.dat` has no such type. */
export function findElementType(idOrName: number | string): ElementType | undefined {
  return typeof idOrName === 'number' ? byId.get(idOrName) : byName.get(idOrName)
}

/** Elements of `shape` times `elementBytes`, or undefined past 2^53 - 1: never wraps, never rounds. */
export function payloadBytes(shape: readonly number[], elementBytes: number): number | undefined {
  if (shape.includes(0)) return 0
  let bytes = elementBytes
  for (const dim of shape) {
    bytes *= dim
    if (!Number.isSafeInteger(bytes)) return undefined
  }
  return bytes
}

type TypedArrayConstructor = { new (buffer: ArrayBuffer): TensorData; readonly BYTES_PER_ELEMENT: number }

const arrayTypes: Partial<Record<DTypeName, TypedArrayConstructor>> = {
  int8: Int8Array,
  qint8: Int8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  complex32: Uint16Array,
  int32: Int32Array,
  qint32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  float32: Float32Array,
  complex64: Float32Array,
  float64: Float64Array,
  complex128: Float64Array,
}

/** The typed array over a whole buffer of `dtype`: raw bits for half-width floats, bytes for the one-byte types. */
export function typedArrayOf(dtype: DTypeName, buffer: ArrayBuffer): TensorData {
  const Type = arrayTypes[dtype] ?? Uint8Array
  return new Type(buffer)
}
