import { resolve } from 'node:path'
import type { Checkpoint } from '../../types/checkpoint'
import type { TensorDifference, VerifyOptions, VerifyResult } from '../../types/convert'
import type { ByteSource } from '../../types/format'
import type { NativeBnb4Source, NativeDevice, NativeFileRange, NativeTensorSource } from '../../types/native'
import { checkFunction, checkNumber, checkOneOf, checkOptions, checkPath, checkSignal } from '../check'
import { Qwen3Nvfp4Error, throwIfAborted } from '../errors'
import { openByteSource, readFully } from '../format/byte-source'
import { openCheckpoint } from '../model/checkpoint'
import { parameterSpecs, type ParameterSpec } from '../model/parameter-specs'
import { native } from '../native'
import { openDevice, runNative } from '../native-call'
import { rangeElements, sourceBytes } from './range-queue'

const chunkBytes = 4 << 20

interface Comparison {
  a: Checkpoint
  b: Checkpoint
  device: NativeDevice
  tolerance: number
  signal: AbortSignal | undefined
}

/**
 * Compares two checkpoints parameter by parameter, in whatever formats they are: by the numbers that they hold, or with
 * `by: 'bits'` the bytes of codes, scales and dense values.
 *
 * @example
 * const { equal, differences } = await verify('Qwen3-4B', 'model.dat', { tolerance: 0.1 })
 */
export async function verify(a: string | URL, b: string | URL, options?: VerifyOptions): Promise<VerifyResult> {
  const given = checkOptions(options, 'options', [
    'by',
    'tolerance',
    'config',
    'nibbles',
    'threads',
    'signal',
    'onProgress',
  ])
  const by = checkOneOf('by', given.by ?? 'values', ['bits', 'values'])
  const tolerance = checkNumber('tolerance', given.tolerance ?? 0, { min: 0 })
  const signal = checkSignal(given.signal)
  const onProgress = checkFunction('onProgress', given.onProgress)
  const [first, second] = await openBoth(resolve(checkPath('a', a)), resolve(checkPath('b', b)), given)
  const run: Comparison = { a: first, b: second, device: openDevice(given), tolerance, signal }

  const sourcesA = sourcesOf(first, second)
  const sourcesB = sourcesOf(second, first)
  const specs = new Map(
    [...parameterSpecs(first.config), ...parameterSpecs(second.config)].map((spec) => [spec.name, spec]),
  )
  const totalBytes = [...sourcesA.values(), ...sourcesB.values()].reduce((sum, source) => sum + sourceBytes(source), 0)
  await using files = new Files()
  const differences: TensorDifference[] = []
  let compared = 0
  let doneBytes = 0
  for (const [name, spec] of specs) {
    throwIfAborted(signal)
    const [one, other] = [sourcesA.get(name), sourcesB.get(name)]
    if (!one || !other) {
      const kind = one ? 'only-in-a' : 'only-in-b'
      differences.push({ name, kind, message: `${(one ? first : second).files[0]} alone has it` })
    } else {
      compared++
      const found =
        by === 'bits' ? await compareBits(run, spec, one, other, files) : await compareValues(run, spec, one, other)
      if (found) differences.push({ name, ...found })
    }
    doneBytes += (one ? sourceBytes(one) : 0) + (other ? sourceBytes(other) : 0)
    onProgress?.({ doneBytes, totalBytes })
  }
  return { equal: differences.length === 0, compared, differences }
}

type Found = Omit<TensorDifference, 'name'>

/** One without a configuration borrows that of the other. */
async function openBoth(
  a: string,
  b: string,
  { config, nibbles, signal }: VerifyOptions,
): Promise<[Checkpoint, Checkpoint]> {
  const open = async (path: string, config: VerifyOptions['config']) =>
    openCheckpoint(path, { config, nibbles, strict: false, signal }).catch((error: unknown) => error as Error)
  const isLost = (result: Checkpoint | Error) => (result as { code?: string }).code === 'CONFIG_NOT_FOUND'
  let [first, second] = [await open(a, config), await open(b, config)]
  if (isLost(first) && !(second instanceof Error)) first = await open(a, second.config)
  if (isLost(second) && !(first instanceof Error)) second = await open(b, first.config)
  if (first instanceof Error) throw first
  if (second instanceof Error) throw second
  return [first, second]
}

/** A tied model has its embedding as the head that another file may store. */
function sourcesOf({ sources, config }: Checkpoint, other: Checkpoint): Map<string, NativeTensorSource> {
  const byName = new Map(sources.map((source) => [source.parameter, source]))
  const embedding = byName.get('model.embed_tokens.weight')!
  if (config.tieWordEmbeddings && !other.config.tieWordEmbeddings) {
    byName.set('lm_head.weight', { ...embedding, parameter: 'lm_head.weight' })
  }
  return byName
}

async function compareValues(
  { a, b, device, tolerance, signal }: Comparison,
  { rows, cols }: ParameterSpec,
  one: NativeTensorSource,
  other: NativeTensorSource,
): Promise<Found | undefined> {
  const count = rows * cols
  if (elementsOf(one) !== count || elementsOf(other) !== count) {
    return { kind: 'storage', message: `${elementsOf(one)} elements and ${elementsOf(other)}` }
  }
  const sum = { squaredError: 0, squares: 0, largestError: 0, different: 0 }
  for (let begin = 0; begin < count; begin += rangeElements) {
    const range = { count, cols, begin, end: Math.min(begin + rangeElements, count) }
    const part = await runNative(signal, (cancel) =>
      native().compareRanges(device, a.files, one, b.files, other, range, cancel),
    )
    sum.squaredError += part.squaredError
    sum.squares += part.squares
    sum.largestError = Math.max(sum.largestError, part.largestError)
    sum.different += part.different
  }
  if (sum.largestError <= tolerance) return undefined
  const relative = Math.sqrt(sum.squaredError / sum.squares)
  return {
    kind: 'values',
    message: `${sum.different} of ${count} values differ, by at most ${sum.largestError} (${(100 * relative).toPrecision(3)} % RMS)`,
    different: sum.different,
    largestDifference: sum.largestError,
    relativeRmsDifference: relative,
  }
}

const mainParts = ['values', 'codes', 'scales', 'residualCodes', 'residualScales'] as const

/** Blocks of Q8_0 are compared as they are, and those of NVFP4 as the codes and scales in them. */
const kindOf = (part: string, { dtype, blocks }: NativeFileRange) => `${part} ${blocks === 'q8_0' ? blocks : dtype}`

/** What has to be the same before codes and absmax can be compared as bytes. */
function formOfBnb4({ codebook, nibbles, blockSize, nested }: NativeBnb4Source): string {
  const twice = nested ? `, of ${nested.blockSize} and ${nested.offset} again by [${nested.map.join(' ')}]` : ''
  return `${codebook} ${nibbles} in blocks of ${blockSize}${twice}`
}

function rangesOf(source: NativeTensorSource): Record<string, NativeFileRange> {
  const { codes, absmax, nested } = source.bnb4 ?? {}
  if (codes && absmax) return { codes, absmax, ...(nested && { 'nested absmax': nested.absmax }) }
  return Object.fromEntries(mainParts.flatMap((part) => (source[part] ? [[part, source[part]]] : [])))
}

async function compareBits(
  run: Comparison,
  spec: ParameterSpec,
  one: NativeTensorSource,
  other: NativeTensorSource,
  files: Files,
): Promise<Found | undefined> {
  const { a, b, signal } = run
  const storage = (source: NativeTensorSource) =>
    source.bnb4
      ? formOfBnb4(source.bnb4)
      : mainParts.flatMap((part) => (source[part] ? [kindOf(part, source[part])] : [])).join(', ')
  if (storage(one) !== storage(other)) {
    return { kind: 'storage', message: `${storage(one)} in one, ${storage(other)} in the other` }
  }
  const [scaleA, scaleB] = [one.globalScale ?? 1, other.globalScale ?? 1]
  if (scaleA !== scaleB) {
    return { kind: 'global-scale', message: `a global scale of ${scaleA} in one, ${scaleB} in the other` }
  }
  const inBlocks = [one, other].some(({ codes }) => codes?.blocks)
  if (inBlocks) return comparePacked(run, spec, one, other)
  const [rangesA, rangesB] = [rangesOf(one), rangesOf(other)]
  for (const [part, range] of Object.entries(rangesA)) {
    const at = await firstDifference(files, a, range, b, rangesB[part]!, signal)
    if (at !== undefined) return { kind: 'bits', message: `${part} differ from byte ${at} on` }
  }
  return undefined
}

/** Codes and scales of which one side at least lies in blocks: taken out of them a range at a time. */
async function comparePacked(
  { a, b, device, signal }: Comparison,
  { rows, cols }: ParameterSpec,
  one: NativeTensorSource,
  other: NativeTensorSource,
): Promise<Found | undefined> {
  const count = rows * cols
  const target = { storage: 'nvfp4', copies: true, globalScale: 1, scaleRule: 'amax' } as const
  const sides = [
    { files: a.files, source: one, bytes: new Uint8Array((Math.min(rangeElements, count) * 9) / 16) },
    { files: b.files, source: other, bytes: new Uint8Array((Math.min(rangeElements, count) * 9) / 16) },
  ] as const
  for (let begin = 0; begin < count; begin += rangeElements) {
    const range = { count, cols, begin, end: Math.min(begin + rangeElements, count) }
    await Promise.all(
      sides.map(({ files, source, bytes }) =>
        runNative(signal, (cancel) => native().convertRange(device, files, source, range, target, bytes, cancel)),
      ),
    )
    // Codes of this range, then its scales.
    const codes = (range.end - begin) / 2
    const [x, y] = sides.map(({ bytes }) => Buffer.from(bytes.buffer, 0, (codes * 9) / 8))
    if (x!.equals(y!)) continue
    const at = x!.findIndex((byte, i) => byte !== y![i])
    const [part, first] = at < codes ? ['codes', begin / 2 + at] : ['scales', begin / 16 + at - codes]
    return { kind: 'bits', message: `${part} differ from byte ${first} on` }
  }
  return undefined
}

async function firstDifference(
  files: Files,
  a: Checkpoint,
  one: NativeFileRange,
  b: Checkpoint,
  other: NativeFileRange,
  signal: AbortSignal | undefined,
): Promise<number | undefined> {
  if (one.bytes !== other.bytes) return Math.min(one.bytes, other.bytes)
  for (let done = 0; done < one.bytes; done += chunkBytes) {
    throwIfAborted(signal)
    const length = Math.min(chunkBytes, one.bytes - done)
    const [x, y] = await Promise.all([
      files.read(a.files[one.file]!, one.offset + done, length),
      files.read(b.files[other.file]!, other.offset + done, length),
    ])
    if (x.equals(y)) continue
    return done + x.findIndex((byte, i) => byte !== y[i])
  }
  return undefined
}

function elementsOf({ values, codes, bnb4 }: NativeTensorSource): number {
  if (bnb4) return bnb4.codes.bytes * 2
  if (codes) return codes.blocks ? (codes.bytes / 36) * 64 : codes.bytes * 2
  if (values!.blocks) return (values!.bytes / 34) * 32
  return values!.bytes / (values!.dtype === 'f32' ? 4 : 2)
}

/** Files that stay open from one range to the next. */
class Files implements AsyncDisposable {
  readonly #open = new Map<string, Promise<ByteSource>>()

  async read(path: string, offset: number, length: number): Promise<Buffer> {
    const opening = this.#open.get(path) ?? openByteSource(path)
    this.#open.set(path, opening)
    const source = await opening
    const bytes = Buffer.allocUnsafe(length)
    await readFully(source, bytes, offset, (got) => {
      return new Qwen3Nvfp4Error('FILE_TRUNCATED', `${path} became shorter while it was read`, {
        file: path,
        offset: offset + got,
      })
    })
    return bytes
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const opening of this.#open.values()) await opening.then((source) => source.close()).catch(() => {})
  }
}
