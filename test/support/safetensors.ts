/** Reads the small safetensors files of ../shared whole: name to typed array. */
import { readFileSync } from 'node:fs'

export type SafetensorsArray = Float32Array | Float64Array | Uint8Array | Int32Array | BigInt64Array

interface Entry {
  dtype: string
  shape: number[]
  data_offsets: [number, number]
}

export function readSafetensors(path: string): Map<string, { shape: number[]; data: SafetensorsArray }> {
  const file = readFileSync(path)
  const headerBytes = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, 8 + headerBytes)) as Record<string, Entry>
  const tensors = new Map<string, { shape: number[]; data: SafetensorsArray }>()
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue
    const [begin, end] = entry.data_offsets.map((offset) => 8 + headerBytes + offset) as [number, number]
    // A copy, because a typed array wants its own alignment.
    const bytes = new Uint8Array(file.subarray(begin, end)).buffer
    tensors.set(name, { shape: entry.shape, data: typed(entry.dtype, bytes) })
  }
  return tensors
}

function typed(dtype: string, bytes: ArrayBuffer): SafetensorsArray {
  switch (dtype) {
    case 'F32':
      return new Float32Array(bytes)
    case 'F64':
      return new Float64Array(bytes)
    case 'I32':
      return new Int32Array(bytes)
    case 'I64':
      return new BigInt64Array(bytes)
    case 'U8':
    case 'F8_E4M3':
      return new Uint8Array(bytes)
    default:
      throw new Error(`Expected a known dtype but received ${dtype}`)
  }
}
