/** What tests of whole models on a GPU share: where they run, the models, and how close two devices have to be. */
import { Qwen3Nvfp4Model, type InitializeOptions, type Qwen3Config } from 'qwen3-nvfp4'
import { ops } from './native-ops'
import type { Bounds } from './similarity'

/** QN_TEST_DEVICE=cpu runs the same tests on the CPU against itself, which tests the tests. */
export const device = process.env['QN_TEST_DEVICE'] ?? 'cuda:0'

const { devices, reason } = ops.probeCuda!() as { devices: number; reason: string }
const present = device === 'cpu' || devices > 0

/** `describe` where there is a GPU, else a skip whose title says why there is none. */
export function describeOnGpu(name: string, body: () => void): void {
  if (present) describe(`${name} on ${device}`, body)
  else describe.skip(`${name} on ${device} (${reason})`, body)
}

/** Heads of 64 in groups of four. */
export const gpuConfig: Qwen3Config = {
  hiddenSize: 256,
  numHiddenLayers: 3,
  numAttentionHeads: 8,
  numKeyValueHeads: 2,
  headDim: 64,
  intermediateSize: 768,
  vocabSize: 1536,
  ropeTheta: 1_000_000,
  rmsNormEps: 1e-6,
  tieWordEmbeddings: true,
}

/** Every row is a multiple of 512 columns, as in all published models: products of few tokens copy whole units of it. */
export const wideConfig: Qwen3Config = { ...gpuConfig, hiddenSize: 512, intermediateSize: 1536 }

/** Two heads of 128 without groups, and a head of its own; a vocabulary that is no multiple of 8. */
export const untiedConfig: Qwen3Config = {
  ...gpuConfig,
  numAttentionHeads: 2,
  headDim: 128,
  vocabSize: 1001,
  tieWordEmbeddings: false,
}

/** The same bytes on every device. Weights of this size keep activations and logits near 1. */
export function gpuModel(options: InitializeOptions = {}, config = gpuConfig): Promise<Qwen3Nvfp4Model> {
  return Qwen3Nvfp4Model.initialize(config, { device, seed: 7, stddev: 0.06, ...options })
}

export function cpuModel(options: InitializeOptions = {}, config = gpuConfig): Promise<Qwen3Nvfp4Model> {
  return gpuModel({ device: 'cpu', ...options }, config)
}

/** A model on the CPU with fp32 weights of the values that `model` computes with now, residuals included. */
export async function denseTwin(model: Qwen3Nvfp4Model): Promise<Qwen3Nvfp4Model> {
  const twin = await cpuModel({ weights: 'fp32' }, model.config)
  for (const parameter of twin.parameters()) await parameter.write(await model.parameter(parameter.name)!.read())
  return twin
}

/** Ids that differ from sequence to sequence and do not repeat soon. */
export function tokensOf(count: number, seed = 1, vocabSize = 1000): number[] {
  return Array.from({ length: count }, (_, i) => (((i + 1 + 64 * seed) * 2654435761) % 2 ** 32) % vocabSize)
}

/**
 * On a GPU every activation is rounded to bf16, half a unit in the last place of which is up to 2^-8 of its value and 2^-9.8
 * in the root mean square. About ten such errors a layer add up in the residual stream, independent of each other:
 * √30 · 2^-9.8 = 0.6 % after three layers, and attention and the head add theirs.
 */
export const activationBounds: Bounds = { relativeError: 0.02, cosine: 0.9998 }

/**
 * A gradient passes through the layers twice, so it has about twice the error of an activation: 2 % is a cosine of
 * 1 − 0.02² / 2 = 0.9998. Its length is off by what the errors have in common, which is little.
 */
export const gradientBounds: Bounds = { cosine: 0.999, normRatio: 0.02 }

/** Values by the name of their parameter. */
export type Tensors = Record<string, Float32Array>

export async function gradientsOf(model: Qwen3Nvfp4Model): Promise<Tensors> {
  const gradients: Tensors = {}
  for (const parameter of model.parameters()) {
    const gradient = await parameter.grad()
    if (gradient) gradients[parameter.name] = gradient
  }
  return gradients
}

export async function weightsOf(model: Qwen3Nvfp4Model): Promise<Tensors> {
  const weights: Tensors = {}
  for (const parameter of model.parameters()) weights[parameter.name] = await parameter.read()
  return weights
}

/** Two sequences to train on. Every fifth label does not count, nor does the padding in front of the second one. */
export const trainingIds = Array.from({ length: 2 }, (_, b) => tokensOf(37, b))
export const trainingLabels = trainingIds.map((row, b) =>
  row.map((id, t) => ((b + t) % 5 === 0 || (b === 1 && t < 4) ? -100 : id)),
)

/** Whether the largest of these logits leads by more than `margin`: then an error below half of it changes no choice. */
export function leads(logits: Float32Array, margin: number): boolean {
  const [first, second] = topTwo(logits)
  return logits[first]! - logits[second]! > margin
}

export const top = (logits: Float32Array): number => topTwo(logits)[0]

function topTwo(logits: Float32Array): [number, number] {
  let [first, second] = logits[0]! >= logits[1]! ? [0, 1] : [1, 0]
  for (let i = 2; i < logits.length; i++) {
    if (logits[i]! > logits[first]!) [first, second] = [i, first]
    else if (logits[i]! > logits[second]!) second = i
  }
  return [first, second]
}
