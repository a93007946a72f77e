import { open, type FileHandle } from 'node:fs/promises'
import type { ByteSource, ByteSourceInput, FileHandleLike } from '../../types/format'
import { checkPath, wrongType } from '../check'
import { ioError, Qwen3Nvfp4Error } from '../errors'

/** Bytes per system call: under the 2 GiB that one read can take, and short enough to notice an abort. */
export const readChunkBytes = 4 << 20

export async function openByteSource(input: ByteSourceInput, name = 'source'): Promise<ByteSource> {
  if (typeof input === 'string' || 'href' in Object(input)) return openFile(checkPath(name, input))
  if (ArrayBuffer.isView(input)) return bytesSource(input as Uint8Array)
  if (isFileHandle(input)) return handleSource(input, (await input.stat()).size)
  if (isByteSource(input)) return { name: input.name, size: input.size, read: input.read.bind(input), close: doNothing }
  throw wrongType('a path, FileHandle, Uint8Array or ByteSource', name, input)
}

/** Fills `target` from `position`; short input is `onShort(bytes that were there)`'s error. */
export async function readFully(
  source: ByteSource,
  target: Uint8Array,
  position: number,
  onShort: (got: number) => Error,
  poll?: () => void,
): Promise<void> {
  let done = 0
  while (done < target.length) {
    poll?.()
    const part = target.subarray(done, Math.min(done + readChunkBytes, target.length))
    const got = await source.read(part, position + done)
    if (!(got > 0)) throw onShort(done)
    done += got
  }
}

async function openFile(path: string): Promise<ByteSource> {
  let handle: FileHandle
  try {
    handle = await open(path, 'r')
  } catch (cause) {
    throw ioError('open', path, cause)
  }
  try {
    const stat = await handle.stat()
    if (!stat.isFile())
      throw new Qwen3Nvfp4Error('IO_FAILED', `cannot read ${path}: not a regular file`, { file: path })
    return { ...handleSource(handle, stat.size, path), close: () => handle.close() }
  } catch (error) {
    await handle.close()
    throw error
  }
}

function handleSource(handle: FileHandleLike, size: number, name = 'file handle'): ByteSource {
  const read = async (target: Uint8Array, position: number) => {
    try {
      return (await handle.read(target, 0, target.length, position)).bytesRead
    } catch (cause) {
      throw ioError('read', name, cause)
    }
  }
  return { name, size, read, close: doNothing }
}

function bytesSource(bytes: Uint8Array): ByteSource {
  const view = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const read = async (target: Uint8Array, position: number) => {
    const part = view.subarray(position, position + target.length)
    target.set(part)
    return part.length
  }
  return { name: 'bytes', size: view.length, read, close: doNothing }
}

function isFileHandle(value: unknown): value is FileHandleLike {
  return typeof value === 'object' && value !== null && 'stat' in value && 'read' in value
}

function isByteSource(value: unknown): value is ByteSource {
  return typeof value === 'object' && value !== null && 'size' in value && 'read' in value
}

async function doNothing(): Promise<void> {}
