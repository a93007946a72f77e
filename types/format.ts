/** Types of GGUF files whose elements lie in blocks with their scales. q8_0 and nvfp4 are read, the others only named. */
export type GgmlBlockName =
  | 'nvfp4'
  | 'q8_0'
  | 'mxfp4'
  | `q${4 | 5}_${0 | 1}`
  | 'q8_1'
  | `q${2 | 3 | 4 | 5 | 6 | 8}_k`
  | `iq${1 | 2 | 3}_s`
  | 'iq1_m'
  | `iq${2 | 3}_xxs`
  | 'iq2_xs'
  | 'iq4_nl'
  | 'iq4_xs'
  | `tq${1 | 2}_0`

/** Element types by name; `.dat` ids, safetensors tags and GGUF types map onto these. */
export type DTypeName =
  | GgmlBlockName
  | 'uint8'
  | 'int8'
  | 'int16'
  | 'uint16'
  | 'int32'
  | 'uint32'
  | 'int64'
  | 'uint64'
  | 'float16'
  | 'bfloat16'
  | 'float32'
  | 'float64'
  | 'complex32'
  | 'complex64'
  | 'complex128'
  | 'bool'
  | 'qint8'
  | 'quint8'
  | 'qint32'
  | 'float4_e2m1fn_x2'
  | 'float8_e4m3fn'
  | 'float8_e5m2'
  | 'float8_e8m0fnu'

/** One tensor of a file: where its payload lies and what it is. The same for `.dat`, safetensors and GGUF. */
export interface TensorEntry {
  key: string
  dtype: DTypeName
  /** Outermost first; empty for a scalar. Packed axes count bytes, but blocks of a GGUF count elements. */
  shape: number[]
  /** First byte of the payload, from the start of the file. */
  offset: number
  /** Bytes of the payload. */
  bytes: number
}

export interface DatEntry extends TensorEntry {
  /** The id in the file: 0-15, 100 or 101. */
  elementType: number
}

/** An array of numbers in a GGUF's metadata; of bool: bytes. */
export type GgufNumbers =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | BigUint64Array
  | BigInt64Array
  | Float64Array

/** A value of a GGUF's metadata; 64-bit numbers are bigints past 2^53. */
export type GgufValue = number | bigint | boolean | string | string[] | GgufNumbers

/** A payload as a typed array; int64 as BigInt64Array, half-width floats as raw bits, complex numbers interleaved. */
export type TensorData =
  | Uint8Array
  | Int8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array
  | Float32Array
  | Float64Array

export interface DatTensor {
  elementType: number
  shape: number[]
  data: ArrayBufferView
}

export interface Progress {
  doneBytes: number
  totalBytes: number
}

export interface LongOperationOptions {
  /** Ends the operation: it rejects with the signal's reason and nothing half-written stays. */
  signal?: AbortSignal
  /** Called now and then with bytes done so far; `doneBytes` never decreases. */
  onProgress?: (progress: Progress) => void
}

/** Anything that can be read by position. `read` may return fewer bytes than asked, and 0 at the end. */
export interface ByteSource {
  /** Names the source in errors. */
  readonly name: string
  /** Total bytes. */
  readonly size: number
  read(target: Uint8Array, position: number): Promise<number>
  close(): Promise<void>
}

/** What readers open: a path (closed by the reader), an open FileHandle, a source or bytes (closed by their owner). */
export type ByteSourceInput = string | URL | Uint8Array | ByteSource | FileHandleLike

/** The part of `fs.promises.FileHandle` that is used. */
export interface FileHandleLike {
  stat(): Promise<{ size: number }>
  read(buffer: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesRead: number }>
}
