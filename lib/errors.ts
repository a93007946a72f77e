/** What a failure concerns, as far as it is known; every field becomes a property of the error. */
export interface ErrorDetails {
  cause?: unknown
  /** The file that was read or written. */
  file?: string
  /** The entry of the file, or the name of the tensor. */
  key?: string
  /** Where in the file, in bytes from its start. */
  offset?: number
}

const brand = Symbol.for('qwen3-nvfp4.error')

/**
 * A failure (not a misuse) of this library. `code` is stable and listed in docs/errors.md.
 *
 * `instanceof` holds across the package's entry points and module formats, each of which carries its own copy.
 */
export class Qwen3Nvfp4Error extends Error {
  readonly code: string
  readonly file?: string
  readonly key?: string
  readonly offset?: number

  constructor(code: string, message: string, details: ErrorDetails = {}) {
    super(message, 'cause' in details ? { cause: details.cause } : undefined)
    this.code = code
    if (details.file !== undefined) this.file = details.file
    if (details.key !== undefined) this.key = details.key
    if (details.offset !== undefined) this.offset = details.offset
    Object.defineProperty(this, brand, { value: true })
  }

  static {
    Object.defineProperty(this.prototype, 'name', { value: 'Qwen3Nvfp4Error', configurable: true, writable: true })
  }

  static [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && brand in value
  }
}

/** A system call that failed on `file`: code IO_FAILED, the system's own error as `cause`. */
export function ioError(doing: string, file: string, cause: unknown): Qwen3Nvfp4Error {
  const system = cause as NodeJS.ErrnoException
  const remedy =
    system?.code === 'ENOSPC' || system?.code === 'EDQUOT'
      ? '; free some space or choose another folder'
      : system?.code === 'ENOENT'
        ? '; check the path'
        : ''
  return new Qwen3Nvfp4Error('IO_FAILED', `cannot ${doing} ${file}: ${system?.message ?? String(cause)}${remedy}`, {
    cause,
    file,
  })
}

/** Throws code ABORTED, with the signal's reason as `cause`, once `signal` is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) {
    throw new Qwen3Nvfp4Error('ABORTED', 'the operation was aborted', { cause: signal.reason })
  }
}
