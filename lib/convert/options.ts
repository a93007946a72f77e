import { extname, resolve } from 'node:path'
import type { ConvertOptions, ExportFormat } from '../../types/convert'
import type { LoadOptions } from '../../types/options'
import {
  checkBoolean,
  checkFunction,
  checkInteger,
  checkOneOf,
  checkOptions,
  checkPath,
  checkSignal,
  wrongType,
  wrongValue,
} from '../check'
import { policyOf, type ConvertPolicy } from './plan'

const formats: readonly ExportFormat[] = [
  'dat',
  'hf-bf16',
  'hf-fp16',
  'hf-fp32',
  'modelopt',
  'compressed-tensors',
  'gguf',
]
const dense = ['fp32', 'fp16', 'bf16'] as const
const ofDat = ['scales', 'embedding', 'head'] as const

export interface CheckedConvert {
  source: string
  target: string
  policy: ConvertPolicy
  scaleRule: 'amax' | 'four-over-six'
  shardBytes: number
  verify: boolean
  open: Pick<LoadOptions, 'config' | 'modelDir' | 'nibbles' | 'strict' | 'signal'>
  threads?: number
  signal?: AbortSignal
  onProgress: ConvertOptions['onProgress']
  onWarning: ConvertOptions['onWarning']
}

export function checkConvert(source: unknown, target: unknown, options: ConvertOptions | undefined): CheckedConvert {
  const given = checkOptions(options, 'options', [
    'format',
    'weights',
    ...ofDat,
    'scaleRule',
    'requantize',
    'dense',
    'denseType',
    'shardBytes',
    'verify',
    'config',
    'modelDir',
    'nibbles',
    'strict',
    'threads',
    'signal',
    'onProgress',
    'onWarning',
  ])
  const path = resolve(checkPath('target', target))
  const format = checkFormat(path, given.format)
  const isGguf = format === 'gguf'
  const denseTypes = isGguf ? ([...dense, 'q8_0'] as const) : dense
  checkOneOf('weights', given.weights ?? 'nvfp4', ['nvfp4', ...denseTypes])
  checkOneOf('scales', given.scales ?? 'one-level', ['one-level', 'two-level'])
  checkBoolean('requantize', given.requantize ?? false)
  checkPatterns(given.dense ?? [])
  checkOneOf('denseType', given.denseType ?? 'as-stored', ['as-stored', ...denseTypes])
  checkOneOf('embedding', given.embedding ?? 'as-stored', ['as-stored', 'nvfp4'])
  checkOneOf('head', given.head ?? 'tied', ['own', 'tied'])
  for (const name of format === 'dat' ? [] : isGguf ? ofDat : (['weights', ...ofDat] as const)) {
    if (given[name] !== undefined)
      throw wrongType(`nothing (it is about a .dat, and the format is ${format})`, name, given[name])
  }
  const signal = checkSignal(given.signal)
  const { config, nibbles, strict } = given
  return {
    source: resolve(checkPath('source', source)),
    target: path,
    policy: policyOf(format, given),
    scaleRule: checkOneOf('scaleRule', given.scaleRule ?? 'amax', ['amax', 'four-over-six']),
    shardBytes: checkInteger('shardBytes', given.shardBytes ?? 5e9, 1),
    verify: checkBoolean('verify', given.verify ?? true),
    open: { config, nibbles, strict, signal, modelDir: given.modelDir && checkPath('modelDir', given.modelDir) },
    threads: given.threads,
    signal,
    onProgress: checkFunction('onProgress', given.onProgress),
    onWarning: checkFunction('onWarning', given.onWarning),
  }
}

function checkFormat(target: string, format: unknown): ExportFormat {
  const byName = { '.dat': 'dat', '.gguf': 'gguf' }[extname(target)]
  if (format === undefined && byName === undefined)
    throw wrongType(`one of ${formats.join(', ')} (or a target named *.dat or *.gguf)`, 'format', format)
  return checkOneOf('format', format ?? byName, formats)
}

function checkPatterns(patterns: unknown): void {
  if (!Array.isArray(patterns)) throw wrongType('an array of strings and regular expressions', 'dense', patterns)
  for (const [i, pattern] of patterns.entries()) {
    const isRegExp = Object.prototype.toString.call(pattern) === '[object RegExp]'
    if (!isRegExp && typeof pattern !== 'string')
      throw wrongType('a string or a regular expression', `dense[${i}]`, pattern)
    if (pattern === '') throw wrongValue('a non-empty string', `dense[${i}]`, pattern)
  }
}
