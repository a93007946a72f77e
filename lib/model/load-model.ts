/** The two ways to a model with weights, down to the native object. */
import type { Checkpoint, CheckpointLayout } from '../../types/checkpoint'
import type { Qwen3Config } from '../../types/config'
import type { Compute, NativeDevice, NativeLoadOptions, NativeModel, NativeParameterInfo } from '../../types/native'
import type { LongOperationOptions } from '../../types/format'
import type { ComputeOptions, InitializeOptions, LoadOptions } from '../../types/options'
import type { Storage } from '../../types/tensor'
import { checkFunction, checkNumber, checkOneOf, checkOptions, checkSeed, checkSignal } from '../check'
import { callNative, Qwen3Nvfp4Error } from '../errors'
import { checkLongOptions } from '../format/tensor-reader'
import { native } from '../native'
import { openDevice, runNative } from '../native-call'
import { checkConfig, openCheckpoint } from './checkpoint'
import { toConfigJson } from './config'
import { toNativeConfig } from './memory'
import { emitWarnings } from './warnings'

const storages: readonly Storage[] = ['nvfp4', 'fp32', 'fp16', 'bf16']
const computes: readonly Compute[] = ['w4a16', 'w4a4']

export interface OpenedModel {
  config: Qwen3Config
  device: NativeDevice
  compute: Compute
  model: NativeModel
  parameters: NativeParameterInfo[]
  layout?: CheckpointLayout
}

/** Fills a new native model; one that cannot be filled is freed again. */
async function open(
  config: Qwen3Config,
  device: NativeDevice,
  compute: Compute,
  fill: (model: NativeModel) => Promise<void>,
): Promise<OpenedModel> {
  const model = callNative(() => new (native().Model)(device, toNativeConfig(config), compute))
  try {
    await fill(model)
    return { config, device, compute, model, parameters: await model.describe() }
  } catch (error) {
    await model.dispose()
    throw error
  }
}

export async function initializeNative(config: Qwen3Config, options?: InitializeOptions): Promise<OpenedModel> {
  const given = checkOptions(options, 'options', [
    'device',
    'threads',
    'compute',
    'seed',
    'stddev',
    'weights',
    'scales',
    'signal',
  ])
  const checked = checkConfig(config)
  const args = {
    seed: checkSeed('seed', given.seed ?? 0),
    stddev: checkNumber('stddev', given.stddev ?? 0.02, { above: 0 }),
    storage: checkOneOf('weights', given.weights ?? 'nvfp4', storages),
    twoLevel: checkOneOf('scales', given.scales ?? 'two-level', ['two-level', 'one-level']) === 'two-level',
  }
  const compute = checkCompute(given)
  const signal = checkSignal(given.signal)
  return open(checked, openDevice(given), compute, (model) =>
    runNative(signal, (cancel) => model.initialize(args, cancel)),
  )
}

export async function loadNative(path: string | URL, options?: LoadOptions): Promise<OpenedModel> {
  const given = checkOptions(options, 'options', [
    'device',
    'threads',
    'compute',
    'modelDir',
    'config',
    'weights',
    'embedding',
    'scales',
    'scaleRule',
    'nibbles',
    'strict',
    'signal',
    'onProgress',
    'onWarning',
  ])
  const signal = checkSignal(given.signal)
  const onWarning = checkFunction('onWarning', given.onWarning)
  const onProgress = checkFunction('onProgress', given.onProgress)
  const weights = given.weights === undefined ? undefined : checkOneOf('weights', given.weights, storages)
  checkOneOf('embedding', given.embedding ?? 'nvfp4', ['as-stored', 'nvfp4'])
  checkOneOf('scales', given.scales ?? 'two-level', ['two-level', 'one-level'])
  checkOneOf('scaleRule', given.scaleRule ?? 'amax', ['amax', 'four-over-six'])
  const compute = checkCompute(given)
  // The device first: it is the cheapest of what may be refused.
  const device = openDevice(given)
  const { modelDir, config, nibbles, strict } = given
  const checkpoint = await openCheckpoint(path, { modelDir, config, nibbles, strict, signal })
  emitWarnings(checkpoint.warnings, onWarning)
  const opened = await open(checkpoint.config, device, compute, (model) =>
    loadParameters(model, checkpoint.files, checkpoint.sources, plan(given, weights, checkpoint), {
      signal,
      onProgress,
    }),
  )
  return { ...opened, layout: checkpoint.layout }
}

const checkCompute = ({ compute }: ComputeOptions) => checkOneOf('compute', compute ?? 'w4a16', computes)

/**
 * Files with NVFP4 or of bitsandbytes, and every .dat, keep what they store; dense ones of Hugging Face and GGUF files are
 * quantised.
 */
function plan(given: LoadOptions, weights: Storage | undefined, { format, sources }: Checkpoint): NativeLoadOptions {
  const isDense = format === 'hf' || (format === 'gguf' && sources.every(({ codes }) => !codes))
  const form = weights ?? (isDense ? 'nvfp4' : undefined)
  return {
    quantize: form === 'nvfp4',
    dense: form === undefined || form === 'nvfp4' ? '' : form,
    quantizeRawEmbedding: (given.embedding ?? (isDense ? 'nvfp4' : 'as-stored')) === 'nvfp4',
    twoLevel: (given.scales ?? 'two-level') === 'two-level',
    scaleRule: given.scaleRule ?? 'amax',
    inPlace: false,
  }
}

/** Reads a `.dat` of the same model into the buffers that it has. */
export async function restoreNative(
  model: NativeModel,
  config: Qwen3Config,
  path: string | URL,
  options?: LongOperationOptions,
): Promise<void> {
  const long = checkLongOptions(options)
  const { files, sources, config: stored } = await openCheckpoint(path, { signal: long.signal })
  const parameters = await model.describe()
  const differences = [
    ...fieldDifferences(toConfigJson(stored), toConfigJson(config)),
    ...sources.flatMap(({ parameter, codes, bnb4 }) => {
      const here = packedForm(parameters.find(({ name }) => name === parameter))
      const there = codes ? 'nvfp4' : (bnb4?.codebook ?? 'dense')
      return here === there ? [] : [`${parameter} is ${there} there and ${here} here`]
    }),
  ]
  if (differences.length > 0) {
    const message = `${files[0]} is no file of this model: ${differences.slice(0, 10).join('; ')}`
    throw new Qwen3Nvfp4Error('STATE_MISMATCH', message, { file: files[0] })
  }
  const plan = { quantize: false, dense: '', quantizeRawEmbedding: false, twoLevel: true, scaleRule: 'amax' } as const
  await loadParameters(model, files, sources, { ...plan, inPlace: true }, long)
}

const packedForm = (info: NativeParameterInfo | undefined): string =>
  info?.storage === 'nvfp4' ? 'nvfp4' : (info?.codebook ?? 'dense')

const fieldDifferences = (there: Record<string, unknown>, here: Record<string, unknown>): string[] =>
  Object.keys({ ...there, ...here })
    .filter((key) => JSON.stringify(there[key]) !== JSON.stringify(here[key]))
    .map((key) => `${key} is ${JSON.stringify(there[key])} there and ${JSON.stringify(here[key])} here`)

/** An error of the caller's own onProgress ends the load and is what it rejects with. */
async function loadParameters(
  model: NativeModel,
  files: string[],
  sources: Parameters<NativeModel['load']>[1],
  options: NativeLoadOptions,
  { signal, onProgress }: Pick<LoadOptions, 'signal' | 'onProgress'>,
): Promise<void> {
  const failed = new AbortController()
  const report =
    onProgress &&
    ((doneBytes: number, totalBytes: number) => {
      if (failed.signal.aborted) return
      try {
        onProgress({ doneBytes, totalBytes })
      } catch (error) {
        failed.abort(error)
      }
    })
  const either = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal
  await runNative(either, (cancel) => model.load(files, sources, options, report, cancel))
  failed.signal.throwIfAborted()
}
