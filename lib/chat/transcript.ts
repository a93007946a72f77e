import { readFile } from 'node:fs/promises'
import type { ChatMessage, Transcript } from '../../types/chat'
import { checkPath } from '../check'
import { Qwen3Nvfp4Error, ioError } from '../errors'
import { writeFileAtomic } from '../format/atomic-file'
import { checkMessages } from './chat-template'

function invalid(message: string, cause?: unknown): Qwen3Nvfp4Error {
  return new Qwen3Nvfp4Error('TRANSCRIPT_INVALID', message, cause === undefined ? {} : { cause })
}

function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw invalid(`${where} is not JSON: ${(cause as Error).message}`, cause)
  }
}

/** Copies the messages of stored data, after checking them. */
function storedMessages(messages: unknown, where: string): ChatMessage[] {
  try {
    return structuredClone(checkMessages(messages)) as ChatMessage[]
  } catch (cause) {
    throw invalid(`${where} holds no conversation: ${(cause as Error).message}`, cause)
  }
}

export function toTranscript(messages: readonly ChatMessage[]): Transcript {
  return { format: 'qwen3-nvfp4-chat', version: 1, messages: structuredClone(messages) as ChatMessage[] }
}

/** The messages of a transcript object, such as `JSON.parse` of a stored one gives. */
export function parseTranscript(value: unknown, where = 'the transcript'): ChatMessage[] {
  const { format, version, messages } = (value ?? {}) as Partial<Transcript>
  if (format !== 'qwen3-nvfp4-chat') throw invalid(`${where} is not a transcript: its format is ${String(format)}`)
  if (version !== 1) throw invalid(`${where} has version ${String(version)}, but only version 1 is known`)
  return storedMessages(messages, where)
}

const isLines = (path: string) => path.endsWith('.jsonl')

/** Reads a transcript: one message a line when the name ends with .jsonl, one JSON object otherwise. */
export async function readTranscript(path: string | URL): Promise<ChatMessage[]> {
  const file = checkPath('path', path)
  const text = await readFile(file, 'utf8').catch((cause: unknown) => {
    throw ioError('read', file, cause)
  })
  if (!isLines(file)) return parseTranscript(parseJson(text, file), file)
  const lines = text.split('\n')
  if (lines.at(-1) === '') lines.pop()
  return storedMessages(
    lines.map((line, i) => parseJson(line, `${file}, line ${i + 1},`)),
    file,
  )
}

/** For people to read: every message under its role. */
const toText = (messages: readonly ChatMessage[]) =>
  messages.map(({ role, content }) => `${role}:\n${content}\n`).join('\n')

/**
 * Writes a transcript, whole or not at all: one message a line when the name ends with .jsonl, text for people that
 * cannot be read back when it ends with .txt, else one JSON object.
 */
export async function writeTranscript(path: string | URL, messages: readonly ChatMessage[]): Promise<void> {
  const file = checkPath('path', path)
  checkMessages(messages)
  const text = isLines(file)
    ? messages.map((message) => `${JSON.stringify(message)}\n`).join('')
    : file.endsWith('.txt')
      ? toText(messages)
      : `${JSON.stringify(toTranscript(messages), null, 2)}\n`
  await writeFileAtomic(file, new TextEncoder().encode(text))
}
