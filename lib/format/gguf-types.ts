import type { DTypeName, GgufNumbers } from '../../types/format'

export interface GgmlType {
  readonly id: number
  readonly dtype: DTypeName
  /** Elements of a block, and its bytes; 1 element where there are no blocks. */
  readonly elements: number
  readonly bytes: number
}

const type = (id: number, dtype: DTypeName, elements: number, bytes: number): GgmlType => ({
  id,
  dtype,
  elements,
  bytes,
})

/** Tensor types of GGUF files. Their sizes say where the next tensor begins, also where the contents are not read. */
export const ggmlTypes: readonly GgmlType[] = [
  type(0, 'float32', 1, 4),
  type(1, 'float16', 1, 2),
  type(2, 'q4_0', 32, 18),
  type(3, 'q4_1', 32, 20),
  type(6, 'q5_0', 32, 22),
  type(7, 'q5_1', 32, 24),
  type(8, 'q8_0', 32, 34),
  type(9, 'q8_1', 32, 36),
  type(10, 'q2_k', 256, 84),
  type(11, 'q3_k', 256, 110),
  type(12, 'q4_k', 256, 144),
  type(13, 'q5_k', 256, 176),
  type(14, 'q6_k', 256, 210),
  type(15, 'q8_k', 256, 292),
  type(16, 'iq2_xxs', 256, 66),
  type(17, 'iq2_xs', 256, 74),
  type(18, 'iq3_xxs', 256, 98),
  type(19, 'iq1_s', 256, 50),
  type(20, 'iq4_nl', 32, 18),
  type(21, 'iq3_s', 256, 110),
  type(22, 'iq2_s', 256, 82),
  type(23, 'iq4_xs', 256, 136),
  type(24, 'int8', 1, 1),
  type(25, 'int16', 1, 2),
  type(26, 'int32', 1, 4),
  type(27, 'int64', 1, 8),
  type(28, 'float64', 1, 8),
  type(29, 'iq1_m', 256, 56),
  type(30, 'bfloat16', 1, 2),
  type(34, 'tq1_0', 256, 54),
  type(35, 'tq2_0', 256, 66),
  type(39, 'mxfp4', 32, 17),
  type(40, 'nvfp4', 64, 36),
]

const byId = new Map(ggmlTypes.map((each) => [each.id, each]))
const byName = new Map(ggmlTypes.map((each) => [each.dtype, each]))

export function findGgmlType(idOrName: number | DTypeName): GgmlType | undefined {
  return typeof idOrName === 'number' ? byId.get(idOrName) : byName.get(idOrName)
}

/** Bytes of `shape`, or undefined past 2^53 - 1 or where a row is no whole number of blocks. */
export function ggmlBytes(shape: readonly number[], { elements, bytes }: GgmlType): number | undefined {
  const blocks = (shape.at(-1) ?? 1) / elements
  if (!Number.isInteger(blocks)) return undefined
  const total = shape.slice(0, -1).reduce((product, dim) => product * dim, blocks * bytes)
  return Number.isSafeInteger(total) ? total : undefined
}

/** Numeric types of metadata values by id: how an element is read, and the arrays that hold many. */
export interface GgufNumber {
  readonly bytes: number
  readonly read: (view: DataView, offset: number) => number | bigint
  readonly array: new (buffer: ArrayBuffer) => GgufNumbers
}
export const ggufIds = { uint8: 0, uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9, uint64: 10 } as const

export const ggufNumbers: Readonly<Record<number, GgufNumber>> = {
  0: { bytes: 1, read: (view, at) => view.getUint8(at), array: Uint8Array },
  1: { bytes: 1, read: (view, at) => view.getInt8(at), array: Int8Array },
  2: { bytes: 2, read: (view, at) => view.getUint16(at, true), array: Uint16Array },
  3: { bytes: 2, read: (view, at) => view.getInt16(at, true), array: Int16Array },
  4: { bytes: 4, read: (view, at) => view.getUint32(at, true), array: Uint32Array },
  5: { bytes: 4, read: (view, at) => view.getInt32(at, true), array: Int32Array },
  6: { bytes: 4, read: (view, at) => view.getFloat32(at, true), array: Float32Array },
  10: { bytes: 8, read: (view, at) => view.getBigUint64(at, true), array: BigUint64Array },
  11: { bytes: 8, read: (view, at) => view.getBigInt64(at, true), array: BigInt64Array },
  12: { bytes: 8, read: (view, at) => view.getFloat64(at, true), array: Float64Array },
}
