/** What stands before the tensors of a GGUF that is written. */
import { basename, join } from 'node:path'
import type { Qwen3Config } from '../../types/config'
import type { FileStorage } from '../../types/convert'
import { ggufOfTokenizer } from '../chat/gguf-tokenizer'
import { Tokenizer } from '../chat/tokenizer'
import { readTokenizerFiles, type TokenizerFiles } from '../chat/tokenizer-files'
import { Qwen3Nvfp4Error } from '../errors'
import type { GgufWrittenValue } from '../format/gguf-writer'
import { exists } from '../model/checkpoint-files'
import { ggufOfConfig } from '../model/gguf-config'

/** llama.cpp's numbers of what most matrices are. */
const fileTypes: Record<FileStorage, number> = { fp32: 0, fp16: 1, q8_0: 7, bf16: 32, nvfp4: 39 }

export interface GgufMetadata {
  values: Map<string, GgufWrittenValue>
  /** Why there is no tokenizer in it. */
  withoutTokenizer?: string
}

/** `modelDir` has the tokenizer: a folder, or a GGUF with one in it. */
export async function ggufMetadata(
  target: string,
  config: Qwen3Config,
  weights: FileStorage,
  modelDir: string,
): Promise<GgufMetadata> {
  const values = new Map<string, GgufWrittenValue>([
    ...ggufOfConfig(config),
    ['general.name', { type: 'string', value: basename(target, '.gguf') }],
    ['general.file_type', { type: 'uint32', value: fileTypes[weights] }],
    ['general.quantization_version', { type: 'uint32', value: 2 }],
  ])
  const found = await findTokenizer(modelDir)
  const tokenizer = 'reason' in found ? found : ggufOfTokenizer(found, config.vocabSize)
  if (!('reason' in tokenizer)) {
    // Ids of the configuration, which is what the model was trained with, go before those of the tokenizer.
    for (const [key, value] of tokenizer) if (!values.has(key)) values.set(key, value)
    return { values }
  }
  // Readers want to know that this is no mistake.
  values.set('tokenizer.ggml.model', { type: 'string', value: 'none' })
  return { values, withoutTokenizer: tokenizer.reason }
}

/** The tokenizer of a folder or GGUF, checked as one that runs; or why it cannot be had. */
export async function findTokenizer(modelDir: string): Promise<TokenizerFiles | { reason: string }> {
  if (!modelDir.endsWith('.gguf') && !(await exists(join(modelDir, 'tokenizer.json')))) {
    return { reason: `${modelDir} has no tokenizer.json` }
  }
  try {
    const files = await readTokenizerFiles(modelDir)
    Tokenizer.fromJson(files.tokenizer, files.config)
    return files
  } catch (error) {
    if (error instanceof Qwen3Nvfp4Error && /^(TOKENIZER|CHAT_TEMPLATE)_/.test(error.code)) {
      return { reason: error.message }
    }
    throw error
  }
}
