/** How a weight matrix can be asked to be stored. */
export type Storage = 'nvfp4' | 'fp32' | 'fp16' | 'bf16'

/** How a weight matrix is stored: what a bitsandbytes checkpoint has in 4 bits stays as it is unless asked otherwise. */
export type WeightStorage = Storage | 'bnb4'

/** The 16 values of a bitsandbytes code: NF4, or its FP4, which is another one than that of NVFP4. */
export type Codebook = 'nf4' | 'fp4'

/** Which nibble of a byte has the first of its two elements. */
export type Nibbles = 'high-first' | 'low-first'

/** Element types of files. */
export type DType = 'f64' | 'f32' | 'f16' | 'bf16' | 'e4m3' | 'u8' | 'i8' | 'i16' | 'i32' | 'i64' | 'bool'

/** An NVFP4 matrix: value[n, k] = e2m1(codes) · e4m3(scales) · globalScale. */
export interface Nvfp4Matrix {
  /** u8[rows, cols / 2]; the low nibble is the even column. */
  codes: Uint8Array
  /** E4M3 bytes [rows, cols / 16]. */
  scales: Uint8Array
  /** The second level; 1 for a one-level tensor. */
  globalScale: number
  rows: number
  cols: number
}
