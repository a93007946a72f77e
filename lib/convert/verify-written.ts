import { crc32 } from 'node:zlib'
import type { TensorEntry } from '../../types/format'
import { Qwen3Nvfp4Error, throwIfAborted } from '../errors'
import { PieceReader } from '../format/piece-reader'
import type { TensorReader } from '../format/tensor-reader'
import { openTensorFile } from '../model/checkpoint-files'
import type { PlannedPart } from './plan'
import type { WrittenFile } from './sinks'

const pieceBytes = 2 << 20

/** Reads a file again as any reader would: index, shapes, types, and the digest of every payload. */
export async function verifyWritten(
  { path, parts, digests }: WrittenFile,
  signal: AbortSignal | undefined,
  onRead: (key: string, bytes: number) => void,
): Promise<void> {
  await using reader = await openTensorFile(path)
  const pieces = new PieceReader(pieceBytes)
  if (reader.entries.length !== parts.length) throw failed(path, `${reader.entries.length} of ${parts.length} tensors`)
  for (const part of parts) {
    checkEntry(reader, part)
    let digest = 0
    for await (const chunk of pieces.read(part.bytes, (begin, target) => reader.readInto(part.key, begin, target))) {
      throwIfAborted(signal)
      digest = crc32(chunk, digest)
      onRead(part.key, chunk.length)
    }
    if (digest !== digests.get(part.key)) throw failed(path, `other bytes of ${part.key}`, part.key)
  }
}

function checkEntry(reader: TensorReader<TensorEntry>, { key, dtype, shape }: PlannedPart): void {
  const entry = reader.has(key) ? reader.entry(key) : undefined
  if (entry?.dtype === dtype && entry.shape.join() === shape.join()) return
  const found = entry ? `${entry.dtype}[${entry.shape.join(', ')}]` : 'nothing'
  throw failed(reader.file, `${found} for ${key} ${dtype}[${shape.join(', ')}]`, key)
}

function failed(file: string, what: string, key?: string): Qwen3Nvfp4Error {
  const message = `${file} was written and reads back with ${what}; it was removed. Check the disk and the memory of this machine`
  return new Qwen3Nvfp4Error('VERIFY_FAILED', message, { file, key })
}
