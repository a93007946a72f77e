/** Options of the NVFP4 codec (lib/ops/quantize.ts). */

export interface QuantizeOptions {
  /** N, 0 or more. */
  rows: number
  /** K, a multiple of 16, 16 or more. */
  cols: number
  /** With 'two-level' a power of two scales the whole tensor; 'one-level' leaves it 1. Default: 'two-level'. */
  scales?: 'two-level' | 'one-level'
  /** How values between two codes are rounded. Default: 'nearest' (ties to the even code). */
  rounding?: 'nearest' | 'stochastic'
  /**
   * How the scale of a block of 16 is chosen from its largest magnitude: 'amax' rounds amax / 6 to the nearest E4M3
   * number, 'four-over-six' takes amax / 4 instead where that makes the squared error smaller (arXiv 2512.02010), and
   * 'amax-up' rounds amax / 6 up so that nothing saturates. Default: 'amax', and 'amax-up' for stochastic rounding,
   * which is unbiased only so.
   */
  scaleRule?: 'amax' | 'four-over-six' | 'amax-up'
  /** Of the random bits of stochastic rounding, from 0 to 2^64 - 1. Default: 0. */
  seed?: number | bigint
  /** Where to compute: 'cpu', or 'cuda:N', which gives the same bytes. Default: 'cpu'. */
  device?: string
  /** Threads, 1 or more. Default: the cores this process may use. Results do not depend on it. */
  threads?: number
  /** Polled about every million elements. */
  signal?: AbortSignal
}

export interface DequantizeOptions {
  /** Where to compute: 'cpu', or 'cuda:N', which gives the same values. Default: 'cpu'. */
  device?: string
  /** Threads, 1 or more. Default: the cores this process may use. */
  threads?: number
  /** Polled about every million elements. */
  signal?: AbortSignal
}

/** The shape of the matrix whose scales they are: [rows, cols / 16] scales. */
export interface BlockedScalesOptions {
  /** N, 0 or more. */
  rows: number
  /** K, a multiple of 16, 16 or more. */
  cols: number
}
