import { isUtf8 } from 'node:buffer'
import { createHash } from 'node:crypto'
import { open, stat } from 'node:fs/promises'
import { describe } from '../check'
import { Qwen3Nvfp4Error, ioError } from '../errors'
import type { Pacer } from './pacer'

const chunkBytes = 128 * 1024
const maxLineBytes = 64 * 2 ** 20
const newline = 10
const carriageReturn = 13

/** A line of a file, without its end. */
export interface TextLine {
  /** From 1. */
  number: number
  /** Its first byte in the file, and that of the next line. */
  offset: number
  nextOffset: number
  /** Valid until the next line is asked for. */
  bytes: Buffer
}

/** What a file was when it was read: another size or time means that it may have changed. */
export interface FileState {
  size: number
  modifiedMs: number
}

export async function fileState(file: string): Promise<FileState> {
  const { size, mtimeMs } = await stat(file).catch((cause: unknown) => {
    throw ioError('read', file, cause)
  })
  return { size, modifiedMs: mtimeMs }
}

/** Refuses a file that is not what it was, as offsets into it and hashes of it would be wrong. */
export async function checkUnchanged(file: string, was: FileState): Promise<void> {
  const { size, modifiedMs } = await fileState(file)
  if (size === was.size && modifiedMs === was.modifiedMs) return
  const what = size === was.size ? 'was written again' : `has ${size} bytes and had ${was.size}`
  throw new Qwen3Nvfp4Error('TRAINING_DATA_CHANGED', `${file} ${what} since it was opened; open it again`, { file })
}

/** A line that is not what its format asks for. */
export function lineError(file: string, line: number, what: string, text: string, cause?: unknown): Qwen3Nvfp4Error {
  const details = cause === undefined ? { file, line } : { file, line, cause }
  return new Qwen3Nvfp4Error('TRAINING_DATA_INVALID', `${file}, line ${line}: ${what}: ${describe(text)}`, details)
}

/** Pieces of a file from `position` on, each into the same buffer. */
async function* fileChunks(file: string, position: number): AsyncGenerator<Buffer, void, undefined> {
  const handle = await open(file, 'r').catch((cause: unknown) => {
    throw ioError('read', file, cause)
  })
  try {
    const buffer = Buffer.allocUnsafe(chunkBytes)
    for (;;) {
      const { bytesRead } = await handle.read(buffer, 0, chunkBytes, position).catch((cause: unknown) => {
        throw ioError('read', file, cause)
      })
      if (bytesRead === 0) return
      position += bytesRead
      yield buffer.subarray(0, bytesRead)
    }
  } finally {
    await handle.close()
  }
}

const byteOrderMark = Buffer.from([0xef, 0xbb, 0xbf])

function finishLine(file: string, number: number, offset: number, whole: Buffer): TextLine {
  const begin = offset === 0 && whole.subarray(0, 3).equals(byteOrderMark) ? 3 : 0
  const end = whole.at(-1) === carriageReturn ? whole.length - 1 : whole.length
  const bytes = whole.subarray(begin, end)
  if (!isUtf8(bytes)) throw lineError(file, number, 'not UTF-8', bytes.toString('utf8'))
  return { number, offset: offset + begin, nextOffset: offset + whole.length + 1, bytes }
}

/**
 * The lines of a UTF-8 file from a place on, with a byte order mark skipped and `\r\n` taken for `\n`. `onBytes` gets
 * everything that is read.
 */
export async function* textLines(
  file: string,
  pacer: Pacer,
  from = { number: 1, offset: 0 },
  onBytes?: (bytes: Buffer) => void,
): AsyncGenerator<TextLine, void, undefined> {
  let { number, offset } = from
  let begun: Buffer[] = []
  const take = (end: Buffer): TextLine => {
    const line = finishLine(file, number++, offset, begun.length === 0 ? end : Buffer.concat([...begun, end]))
    offset = line.nextOffset
    begun = []
    return line
  }
  for await (const chunk of fileChunks(file, offset)) {
    onBytes?.(chunk)
    let begin = 0
    for (let end = chunk.indexOf(newline); end >= 0; end = chunk.indexOf(newline, begin)) {
      yield take(chunk.subarray(begin, end))
      begin = end + 1
      const pause = pacer.pause()
      if (pause) await pause
    }
    if (begin < chunk.length) begun.push(Buffer.from(chunk.subarray(begin)))
    if (begun.length * chunkBytes > maxLineBytes) {
      const what = `longer than ${maxLineBytes / 2 ** 20} MiB`
      throw lineError(file, number, what, begun[0]!.toString('utf8', 0, 100))
    }
  }
  if (begun.length > 0) yield take(Buffer.alloc(0))
}

/** Reads a file once: its lines to `onLine`, the hash of its bytes, and what it was at that time. */
export async function scanLines(
  file: string,
  pacer: Pacer,
  onLine: (line: TextLine) => void,
): Promise<{ hash: string; state: FileState }> {
  const state = await fileState(file)
  const hash = createHash('sha256')
  for await (const line of textLines(file, pacer, undefined, (bytes) => hash.update(bytes))) onLine(line)
  await checkUnchanged(file, state)
  return { hash: hash.digest('hex'), state }
}
