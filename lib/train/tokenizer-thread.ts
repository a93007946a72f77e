/** What runs in a thread of TokenizerThreads; a file of its own in dist/. */
import { parentPort, workerData } from 'node:worker_threads'
import type { TrainingSample } from '../../types/training'
import { Tokenizer } from '../chat/tokenizer'
import { Qwen3Nvfp4Error } from '../errors'
import { LineTokenizer, type LinePlace } from './line-tokenizer'
import { Pacer } from './pacer'
import { hashOf, tokenizerPrint } from './sample-source'
import type { ThreadAnswer, ThreadError, ThreadQuestion, ThreadSetup } from './tokenizer-threads'

const port = parentPort!

async function lineTokenizer({ tokenizerPath, tokenizerHash, ...rest }: ThreadSetup): Promise<LineTokenizer> {
  const tokenizer = await Tokenizer.fromFile(tokenizerPath)
  if (hashOf(tokenizerPrint(tokenizer)) !== tokenizerHash) {
    const message = `${tokenizerPath} is another tokenizer than it was when it was read`
    throw new Qwen3Nvfp4Error('TRAINING_DATA_CHANGED', message, { file: tokenizerPath })
  }
  return new LineTokenizer({ tokenizer, ...rest }, new Pacer())
}

const lines = lineTokenizer(workerData as ThreadSetup)
lines.catch(() => {}) // every question is answered with it

async function answer(place: LinePlace): Promise<TrainingSample | { error: ThreadError }> {
  try {
    return await (await lines).read(place)
  } catch (error) {
    const { message } = error as Error
    if (!(error instanceof Qwen3Nvfp4Error)) return { error: { message } }
    const { code, file, line } = error
    return { error: { message, code, file, line } }
  }
}

port.on('message', async ({ id, place }: ThreadQuestion) => {
  const content = await answer(place)
  const reply: ThreadAnswer = { id, ...content }
  port.postMessage(
    reply,
    'ids' in content ? [content.ids.buffer as ArrayBuffer, content.labels.buffer as ArrayBuffer] : [],
  )
})
