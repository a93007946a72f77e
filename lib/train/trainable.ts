import type { Qwen3Config } from '../../types/config'
import { checkBoolean, checkInteger, checkOptions, wrongType, wrongValue } from '../check'

/** Which parameters train; what several of these leave out does not. */
export interface TrainableSelection {
  /** The last layers alone, 1 to all of them, and the norm behind them. Default: all layers. */
  lastLayers?: number
  /** Only parameters whose name matches one: a RegExp, or a text in which * stands for anything. Default: all. */
  names?: readonly (string | RegExp)[]
  /** Whether the embedding trains. Default: true, with `lastLayers` false. */
  embedding?: boolean
  /** Whether the head trains; when it is tied it is the embedding. Default: as `embedding`. */
  head?: boolean
}

const embeddingName = 'model.embed_tokens.weight'
const headName = 'lm_head.weight'

/** The test of a parameter's name that `PackedAdamW` takes. */
export function selectTrainable(
  selection: TrainableSelection | ((name: string) => boolean),
  config: Pick<Qwen3Config, 'numHiddenLayers' | 'tieWordEmbeddings'>,
): (name: string) => boolean {
  if (typeof selection === 'function') return selection
  const given = checkOptions(selection, 'trainable', ['lastLayers', 'names', 'embedding', 'head'])
  const layers = config.numHiddenLayers
  const { lastLayers = layers } = given
  checkInteger('trainable.lastLayers', lastLayers, 1, layers)
  const embedding = checkBoolean('trainable.embedding', given.embedding ?? given.lastLayers === undefined)
  const head = checkBoolean('trainable.head', given.head ?? embedding)
  if (config.tieWordEmbeddings && head !== embedding) {
    throw wrongValue(`${embedding}, as the head is the embedding,`, 'trainable.head', head)
  }
  const patterns = given.names?.map((pattern, i) => toTest(pattern, `trainable.names[${i}]`))
  return (name) => {
    const layer = /^model\.layers\.(\d+)\./.exec(name)
    if (layer && Number(layer[1]) < layers - lastLayers) return false
    if (name === embeddingName && !embedding) return false
    if (name === headName && !head) return false
    return patterns === undefined || patterns.some((matches) => matches(name))
  }
}

function toTest(pattern: unknown, name: string): (name: string) => boolean {
  if (Object.prototype.toString.call(pattern) === '[object RegExp]') {
    return (text) => text.search(pattern as RegExp) >= 0
  }
  if (typeof pattern !== 'string') throw wrongType('a text or a RegExp', name, pattern)
  const literal = pattern.split('*').map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
  const whole = new RegExp(`^${literal.join('.*')}$`)
  return (text) => whole.test(text)
}
