/** Where a tokenizer is read from: the files of a Hugging Face directory, or a GGUF. */
import { readFile, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { ioError, Qwen3Nvfp4Error } from '../errors'
import { GgufReader } from '../format/gguf'
import { tokenizerOfGguf } from './gguf-tokenizer'

/** The parsed contents of tokenizer.json and tokenizer_config.json. */
export interface TokenizerFiles {
  tokenizer: object
  config: object
}

/**
 * Of a tokenizer.json or a folder with one, with the tokenizer_config.json and chat_template.jinja beside it where they
 * exist (the latter wins over a template in the former); or the ones that a `.gguf` stands for.
 */
export async function readTokenizerFiles(path: string): Promise<TokenizerFiles> {
  const info = await stat(path).catch((cause: unknown) => {
    throw ioError('read', path, cause)
  })
  if (!info.isDirectory() && path.endsWith('.gguf')) {
    await using reader = await GgufReader.open(path)
    return tokenizerOfGguf(reader.metadata, path)
  }
  const file = info.isDirectory() ? join(path, 'tokenizer.json') : path
  const folder = dirname(file)
  const [tokenizer, config, template] = await Promise.all([
    readJson(file),
    ifPresent(readJson(join(folder, 'tokenizer_config.json'))),
    ifPresent(readFile(join(folder, 'chat_template.jinja'), 'utf8')),
  ])
  return { tokenizer, config: { ...config, ...(template !== undefined && { chat_template: template }) } }
}

async function readJson(path: string): Promise<object> {
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    throw ioError('read', path, cause)
  })
  try {
    const json: unknown = JSON.parse(text)
    if (typeof json === 'object' && json !== null && !Array.isArray(json)) return json
    throw new Error(`it holds ${json === null ? 'null' : Array.isArray(json) ? 'an array' : typeof json}`)
  } catch (cause) {
    throw new Qwen3Nvfp4Error('TOKENIZER_INVALID', `${path} is not a JSON object: ${(cause as Error).message}`, {
      cause,
      file: path,
    })
  }
}

/** Undefined when there is no such file; any other failure is an error. */
async function ifPresent<T>(read: Promise<T>): Promise<T | undefined> {
  return read.catch((error: unknown) => {
    const { code, cause } = error as { code?: string; cause?: { code?: string } }
    if (code === 'ENOENT' || cause?.code === 'ENOENT') return undefined
    throw error
  })
}
