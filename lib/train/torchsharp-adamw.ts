import { checkOptions, checkString, wrongType } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { type AdamwFileGroup, AdamwFileReader, type AdamwFileState, writeAdamwFile } from '../format/adamw-file'
import type { AdamMoments, PackedAdamW } from '../model/packed-adamw'
import type { Qwen3Nvfp4Model } from '../model/qwen3-nvfp4-model'

export interface TorchSharpAdamWOptions {
  /** Names of the parameters in the order of the file, which has none. Default: those that train, in the model's order. */
  parameters?: readonly string[]
}

export interface ImportedMoments {
  name: string
  /** Updates that the parameter has had. */
  updates: number
  /** RMS of what packing changed, relative to the RMS of the values: of m, and of √v. 0 with fp32 moments. */
  momentError: number
  rootError: number
}

export interface ImportedAdamW {
  /** Of the file. Rate, eps and decay stay those of the optimizer. */
  options: AdamwFileGroup
  parameters: ImportedMoments[]
}

/**
 * Takes the moments and step counts of a TorchSharp AdamW. Another number of parameters, other shapes or betas are
 * refused before anything changes (STATE_MISMATCH).
 */
export async function importTorchSharpAdamW(
  model: Qwen3Nvfp4Model,
  optimizer: PackedAdamW,
  path: string | URL,
  options?: TorchSharpAdamWOptions,
): Promise<ImportedAdamW> {
  const names = parameterNames(optimizer, options)
  await using file = await AdamwFileReader.open(path)
  const group = checkFile(file, names, model, optimizer)
  const parameters: ImportedMoments[] = []
  for (const [i, name] of names.entries()) {
    const { step, m, v } = await file.read(i)
    const wanted = correct({ m, v, updates: step }, group)
    await optimizer.writeMoments(name, wanted)
    const stored = await optimizer.readMoments(name)
    const rootError = relativeError(stored.v, wanted.v, Math.sqrt)
    parameters.push({ name, updates: step, momentError: relativeError(stored.m, wanted.m), rootError })
  }
  return { options: group, parameters }
}

/** Writes the moments as TorchSharp's AdamW loads them. */
export async function exportTorchSharpAdamW(
  model: Qwen3Nvfp4Model,
  optimizer: PackedAdamW,
  path: string | URL,
  options?: TorchSharpAdamWOptions,
): Promise<void> {
  const names = parameterNames(optimizer, options)
  const shapes = names.map((name) => shapeOf(model, name))
  const { beta1, beta2, eps, weightDecay } = optimizer.plan.native
  const { lr } = optimizer
  const group = { lr, initialLr: lr, beta1, beta2, eps, weightDecay, amsgrad: false, maximize: false }
  const states = async function* (): AsyncGenerator<AdamwFileState> {
    for (const [i, name] of names.entries()) {
      const moments = await optimizer.readMoments(name)
      const [bias1, bias2] = biases(moments.updates, group)
      const [m, v] = [moments.m.map((x) => x * bias1), moments.v.map((x) => x * bias2)]
      yield { step: moments.updates, shape: [...shapes[i]!], m, v }
    }
  }
  await writeAdamwFile(path, [group], names.length, states())
}

function parameterNames(optimizer: PackedAdamW, options?: TorchSharpAdamWOptions): readonly string[] {
  const { parameters = optimizer.plan.native.trainable } = checkOptions(options, 'options', ['parameters'])
  if (!Array.isArray(parameters)) throw wrongType('an array of names', 'parameters', parameters)
  parameters.forEach((name, i) => checkString(`parameters[${i}]`, name))
  return parameters
}

function shapeOf(model: Qwen3Nvfp4Model, name: string): readonly number[] {
  const parameter = model.parameter(name)
  if (!parameter) throw new RangeError(`Expected the names of parameters for parameters but received '${name}'`)
  return parameter.shape
}

/** The options of the file, of which all groups have the same. */
function checkFile(
  { groups, states }: AdamwFileReader,
  names: readonly string[],
  model: Qwen3Nvfp4Model,
  optimizer: PackedAdamW,
): AdamwFileGroup {
  const mismatch = (message: string) => new Qwen3Nvfp4Error('STATE_MISMATCH', message)
  if (states.length !== names.length) {
    throw mismatch(`the file has the state of ${states.length} parameters, ${names.length} are to be set`)
  }
  const different = names.flatMap((name, i) => {
    const [there, here] = [states[i]!.shape, shapeOf(model, name)]
    return String(there) === String(here)
      ? []
      : [`state ${i} is [${there.join(', ')}], ${name} is [${here.join(', ')}]`]
  })
  if (different.length > 0) throw mismatch(`${different.slice(0, 5).join('; ')}: give parameters in the file's order`)
  const { beta1, beta2 } = optimizer.plan.native
  for (const group of groups) {
    if (group.beta1 !== beta1 || group.beta2 !== beta2) {
      const message = `the file has betas ${group.beta1} and ${group.beta2}, the optimizer ${beta1} and ${beta2}`
      throw mismatch(message)
    }
    if (group.amsgrad || group.maximize) throw mismatch('the file is of an optimizer with amsgrad or maximize')
  }
  if (!groups[0]) throw mismatch('the file has no options')
  return groups[0]
}

/** 1 − βᵗ of both moments; 1 before the first update. */
const biases = (t: number, { beta1, beta2 }: AdamwFileGroup): [number, number] =>
  t === 0 ? [1, 1] : [1 - beta1 ** t, 1 - beta2 ** t]

function correct({ m, v, updates }: AdamMoments, group: AdamwFileGroup): AdamMoments {
  const [bias1, bias2] = biases(updates, group)
  return { m: m.map((x) => x / bias1), v: v.map((x) => x / bias2), updates }
}

function relativeError(stored: Float32Array, wanted: Float32Array, of = (x: number) => x): number {
  let [error, all] = [0, 0]
  wanted.forEach((x, i) => {
    error += (of(stored[i]!) - of(x)) ** 2
    all += of(x) ** 2
  })
  return all > 0 ? Math.sqrt(error / all) : 0
}
