import type { ForwardOptions, TokenIds } from '../../types/options'
import { checkInt32Values, isIntegerList, wrongShape, wrongType, wrongValue } from '../check'

/** The target that has no loss. */
export const ignoreLabel = -100

export interface TokenBatch {
  /** [batch, tokens] */
  ids: Int32Array
  batch: number
  tokens: number
}

/** B sequences of T integers, from one sequence or from rows of equal length. */
function checkRows(
  name: string,
  value: unknown,
  min: number,
  max: number,
  also?: number,
): { values: Int32Array; batch: number; tokens: number } {
  if (!Array.isArray(value) || !isIntegerList(value[0])) {
    const values = checkInt32Values(name, value, min, max, also)
    return { values, batch: 1, tokens: values.length }
  }
  const rows = value.map((row, b) => checkInt32Values(`${name}[${b}]`, row, min, max, also))
  const tokens = rows[0]!.length
  const values = new Int32Array(rows.length * tokens)
  rows.forEach((row, b) => {
    if (row.length !== tokens) {
      throw wrongShape(`${tokens} elements as in ${name}[0]`, `${name}[${b}]`, `${row.length}`)
    }
    values.set(row, b * tokens)
  })
  return { values, batch: rows.length, tokens }
}

/** Token ids, each in the vocabulary; at least one. */
export function checkIds(ids: TokenIds, vocabSize: number, name = 'ids'): TokenBatch {
  const { values, batch, tokens } = checkRows(name, ids, 0, vocabSize - 1)
  if (values.length === 0) throw wrongValue('at least one token', name, ids)
  return { ids: values, batch, tokens }
}

/** Labels of the same shape as the ids. */
export function checkLabels(labels: TokenIds, of: TokenBatch, vocabSize: number): Int32Array {
  const { values, batch, tokens } = checkRows('labels', labels, 0, vocabSize - 1, ignoreLabel)
  if (batch !== of.batch || tokens !== of.tokens) {
    throw wrongShape(`i32[${of.batch}, ${of.tokens}]`, 'labels', `i32[${batch}, ${tokens}]`)
  }
  return values
}

/** Integers of the same shape as the ids, as bytes or not; a flat list is [B * T] in row order. */
function checkLike(name: string, letter: string, of: TokenBatch, value: unknown, min: number, max: number): Int32Array {
  const { values, batch, tokens } = checkRows(name, value, min, max)
  if (values.length !== of.ids.length || (batch > 1 && tokens !== of.tokens)) {
    throw wrongShape(`${letter}[${of.batch}, ${of.tokens}]`, name, `${letter}[${batch}, ${tokens}]`)
  }
  return values
}

/** A mask of 0 and 1 of the same shape as the ids, or undefined for all 1. */
export function checkMask(mask: ForwardOptions['attentionMask'], of: TokenBatch): Uint8Array | undefined {
  if (mask === undefined) return undefined
  const bytes = Object.prototype.toString.call(mask) === '[object Uint8Array]'
  if (!bytes && !Array.isArray(mask)) throw wrongType('a Uint8Array or nested arrays', 'attentionMask', mask)
  const values = bytes ? Array.from(mask as Uint8Array) : mask
  return Uint8Array.from(checkLike('attentionMask', 'u8', of, values, 0, 1))
}

/** Where the segment of each token begins in its sequence, or undefined for one segment a sequence. */
export function checkSegments(segments: ForwardOptions['segments'], of: TokenBatch): Int32Array | undefined {
  if (segments === undefined) return undefined
  const values = checkLike('segments', 'i32', of, segments, -(2 ** 31), 2 ** 31 - 1)
  const starts = new Int32Array(values.length)
  for (let i = 0; i < values.length; i++) {
    const t = i % of.tokens
    starts[i] = t > 0 && values[i] === values[i - 1] ? starts[i - 1]! : t
  }
  return starts
}
