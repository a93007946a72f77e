import type { CheckpointLayout, ParameterSource } from '../../types/checkpoint'
import type { Qwen3Config } from '../../types/config'
import type { LongOperationOptions } from '../../types/format'
import type { NativeDevice, NativeForwardArgs, NativeGradientOptions, NativeModel } from '../../types/native'
import type {
  CachedForwardOptions,
  Compute,
  ForwardOptions,
  GeneratedToken,
  GenerateOptions,
  HiddenLossOptions,
  InitializeOptions,
  KvCacheOptions,
  LinearSteOptions,
  LoadOptions,
  LossOptions,
  MemoryEstimate,
  MemoryOptions,
  OptimizerOptions,
  TokenIds,
} from '../../types/options'
import { checkBoolean, checkFloat32, checkInteger, checkOneOf, checkOptions, checkSignal, wrongShape } from '../check'
import { awaitNative, callNative } from '../errors'
import { native } from '../native'
import { runNative } from '../native-call'
import { linearSte, type LinearSteResult } from '../ops/linear-ste'
import { checkConfig } from './checkpoint'
import { DifferentiableForwardResult, ForwardResult } from './forward-result'
import { generateTokens } from './generate'
import { defaultCacheDtype, KvCache, nativeCache } from './kv-cache'
import { initializeNative, loadNative, type OpenedModel, restoreNative } from './load-model'
import { Loss } from './loss'
import { estimateMemory, type MemoryUse } from './memory'
import { checkOptimizerOptions, PackedAdamW } from './packed-adamw'
import { Parameter } from './parameter'
import { saveDat, type SaveDatOptions, type SaveDatResult } from './save-dat'
import { checkIds, checkLabels, checkMask, checkSegments } from './token-batch'

const recomputes = ['all', 'cheap', 'none'] as const
const logitsChoices = ['all', 'last', 'none'] as const

/** A Qwen3 model on one device: it is run and trained by the same functions, on the same weights. */
export class Qwen3Nvfp4Model {
  readonly config: Qwen3Config
  /** What its forward passes multiply NVFP4 weights with. */
  readonly compute: Compute
  readonly #native: NativeModel
  readonly #device: NativeDevice
  readonly #parameters: readonly Parameter[]
  readonly #layout: CheckpointLayout | undefined
  #gradients: NativeGradientOptions = { format: 'fp32', allowMany: false, seed: 0n }

  private constructor(opened: OpenedModel) {
    this.#native = opened.model
    this.#device = opened.device
    this.#layout = opened.layout
    this.#parameters = opened.parameters.map((info) => new Parameter(opened.model, info))
    this.config = opened.config
    this.compute = opened.compute
  }

  /** Reads a `.dat` or `.gguf` file, or a Hugging Face directory with safetensors files. */
  static async load(path: string | URL, options?: LoadOptions): Promise<Qwen3Nvfp4Model> {
    return new Qwen3Nvfp4Model(await loadNative(path, options))
  }

  /** A model with random weights. */
  static async initialize(config: Qwen3Config, options?: InitializeOptions): Promise<Qwen3Nvfp4Model> {
    return new Qwen3Nvfp4Model(await initializeNative(config, options))
  }

  /** Bytes that a model of this configuration will need, by kind, before anything is loaded. */
  static estimateMemory(config: Qwen3Config, options: MemoryOptions): MemoryEstimate {
    return estimateMemory(checkConfig(config), options)
  }

  /** Where it computes: 'cpu' or 'cuda:N'. */
  get device(): string {
    return this.#device.name
  }

  /** Threads of its CPU device. */
  get threads(): number {
    return this.#device.threads
  }

  /** Instruction set of its CPU device. */
  get isa(): string {
    return this.#device.isa
  }

  get parameterCount(): number {
    return this.#native.parameterCount
  }

  /** Runs the model without a cache: B sequences of T tokens. */
  forward(ids: TokenIds, options: ForwardOptions & { gradient: true }): Promise<DifferentiableForwardResult>
  forward(ids: TokenIds, options?: ForwardOptions): Promise<ForwardResult>
  async forward(ids: TokenIds, options?: ForwardOptions): Promise<ForwardResult> {
    const given = checkOptions(options, 'options', [
      'logits',
      'hiddenStates',
      'attentionMask',
      'segments',
      'gradient',
      'recompute',
      'reference',
      'signal',
    ])
    const tokens = checkIds(ids, this.config.vocabSize)
    const gradient = checkBoolean('gradient', given.gradient ?? false)
    const mask = checkMask(given.attentionMask, tokens)
    const starts = checkSegments(given.segments, tokens)
    const hiddenStates = checkBoolean('hiddenStates', given.hiddenStates ?? false)
    const signal = checkSignal(given.signal)
    const shape = { ...tokens, ...this.config }
    if (gradient) {
      checkOneOf('logits', given.logits ?? 'all', ['all'])
      const recompute = checkOneOf('recompute', given.recompute ?? 'all', recomputes)
      const args = { ...tokens, mask, starts, recompute, hiddenStates }
      const output = await runNative(signal, (cancel) => this.#native.record(args, cancel))
      return new DifferentiableForwardResult(output, shape, () => this.#gradients)
    }
    const logits = checkOneOf('logits', given.logits ?? 'last', logitsChoices)
    const reference = checkBoolean('reference', given.reference ?? false)
    const args: NativeForwardArgs = { ...tokens, mask, starts, logits, hiddenStates, reference }
    return new ForwardResult(await runNative(signal, (cancel) => this.#native.forward(args, cancel)), shape, logits)
  }

  /** Runs any number of tokens behind those in the cache, and adds them to it. */
  async forwardWithKvCache(ids: TokenIds, cache: KvCache, options?: CachedForwardOptions): Promise<ForwardResult> {
    const given = checkOptions(options, 'options', ['logits', 'hiddenStates', 'signal'])
    const tokens = checkIds(ids, this.config.vocabSize)
    if (tokens.batch !== 1) throw wrongShape('one sequence', 'ids', `${tokens.batch} sequences`)
    const held = nativeCache(cache)
    const logits = checkOneOf('logits', given.logits ?? 'last', logitsChoices)
    const hiddenStates = checkBoolean('hiddenStates', given.hiddenStates ?? false)
    const args: NativeForwardArgs = { ...tokens, logits, hiddenStates, reference: false }
    const output = await runNative(checkSignal(given.signal), (cancel) =>
      this.#native.forwardCached(held, args, cancel),
    )
    return new ForwardResult(output, { ...tokens, ...this.config }, logits)
  }

  /** An empty cache for one conversation. */
  createKvCache(options: KvCacheOptions): KvCache {
    const given = checkOptions(options, 'options', ['maxTokens', 'dtype'])
    const { maxTokens, dtype = defaultCacheDtype(this.device) } = given
    checkInteger('maxTokens', maxTokens, 1, 2 ** 31 - 1)
    checkOneOf('dtype', dtype, ['fp32', 'fp16', 'bf16'])
    return new KvCache(callNative(() => new (native().KvCache)(this.#native, maxTokens, dtype)))
  }

  /** Mean cross-entropy of the labels; full logits are never stored. Its `backward` adds to the gradients. */
  async loss(ids: TokenIds, labels: TokenIds, options?: LossOptions): Promise<Loss> {
    const given = checkOptions(options, 'options', ['shifted', 'recompute', 'attentionMask', 'segments', 'signal'])
    const tokens = checkIds(ids, this.config.vocabSize)
    const args = {
      ...tokens,
      labels: checkLabels(labels, tokens, this.config.vocabSize),
      mask: checkMask(given.attentionMask, tokens),
      starts: checkSegments(given.segments, tokens),
      shifted: checkBoolean('shifted', given.shifted ?? false),
      recompute: checkOneOf('recompute', given.recompute ?? 'all', recomputes),
    }
    const taken = await runNative(checkSignal(given.signal), (cancel) => this.#native.loss(args, cancel))
    return new Loss(taken, () => this.#gradients)
  }

  /**
   * Mean |hidden − target| over the final normalised hidden states, target f32[B, T, H], with a `backward` as of `loss`.
   * For debugging and comparisons: it is computed on the host.
   */
  async hiddenLoss(ids: TokenIds, target: Float32Array, options?: HiddenLossOptions): Promise<Loss> {
    const given = checkOptions(options, 'options', ['recompute', 'attentionMask', 'segments', 'signal'])
    const tokens = checkIds(ids, this.config.vocabSize)
    const args = {
      ...tokens,
      target: checkFloat32('target', target, [tokens.batch, tokens.tokens, this.config.hiddenSize]),
      mask: checkMask(given.attentionMask, tokens),
      starts: checkSegments(given.segments, tokens),
      recompute: checkOneOf('recompute', given.recompute ?? 'all', recomputes),
    }
    const taken = await runNative(checkSignal(given.signal), (cancel) => this.#native.hiddenLoss(args, cancel))
    return new Loss(taken, () => this.#gradients)
  }

  /**
   * y = input · Q(weight)ᵀ and its vector-Jacobian product, straight through the quantisation. `weight` is f32[rows, cols]
   * with both in the options, or the name of one of this model's matrices, used as it is stored.
   */
  async linearSte(
    input: Float32Array,
    weight: Float32Array | string,
    options?: LinearSteOptions,
  ): Promise<LinearSteResult> {
    const named = typeof weight === 'string' ? this.#parameters.find(({ name }) => name === weight) : undefined
    return linearSte(this.#device, input, weight, options, named && { model: this.#native, shape: named.shape })
  }

  /** Every parameter, in the order of the core. */
  parameters(): IterableIterator<Parameter> {
    return this.#parameters.values()
  }

  /** The parameter of a name, or undefined. */
  parameter(name: string): Parameter | undefined {
    return this.#parameters.find((parameter) => parameter.name === name)
  }

  /** An optimizer of this model's weights. Its state is allocated at once; its first call reports a failure to. */
  createOptimizer(options?: OptimizerOptions): PackedAdamW {
    const plan = checkOptimizerOptions(options, this.#parameters, this.device)
    const optimizer = new PackedAdamW(this.#native, plan, this.config.vocabSize)
    this.#gradients = plan.gradients
    const trained = new Set(plan.native.trainable)
    for (const parameter of this.#parameters) parameter.trains = trained.has(parameter.name)
    return optimizer
  }

  /** Drops the gradients of earlier backward passes. */
  async zeroGrad(): Promise<void> {
    await awaitNative(() => this.#native.zeroGradients())
  }

  /** New tokens after these, one by one as they are made. Leaving the loop stops the model. */
  generate(
    ids: Int32Array | readonly number[],
    options?: GenerateOptions,
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    const { ids: prompt, batch } = checkIds(ids, this.config.vocabSize)
    if (batch !== 1) throw wrongShape('one sequence', 'ids', `${batch} sequences`)
    const { vocabSize, eosTokenIds = [] } = this.config
    const traits = { vocabSize, eosTokenIds, cacheDtype: defaultCacheDtype(this.device) }
    return generateTokens(this.#native, traits, prompt, options)
  }

  /**
   * Writes every parameter as a `.dat`, atomically, and the configuration beside it. What stands in NVFP4 is what the
   * forward pass uses, residuals included; fp32 and bf16 masters stay with the optimizer, whose `save` writes them.
   */
  async saveDat(path: string | URL, options?: SaveDatOptions): Promise<SaveDatResult> {
    const parameters = await awaitNative(() => this.#native.describe())
    const source: ParameterSource = {
      parameters,
      read: (name, part, offset, target) =>
        awaitNative(() => this.#native.readBytes(name, part === 'values' ? 'dense' : part, offset, target)),
      fold: (name, twoLevel) => awaitNative(() => this.#native.foldResidual(name, twoLevel)),
    }
    return saveDat(source, path, { config: this.config, layout: this.#layout }, options)
  }

  /**
   * Reads a `.dat` that `saveDat` wrote of this model into the memory that the weights have. Another configuration or
   * storage is refused (STATE_MISMATCH) before anything changes. Gradients are dropped.
   */
  async restoreDat(path: string | URL, options?: LongOperationOptions): Promise<void> {
    await restoreNative(this.#native, this.config, path, options)
    await this.zeroGrad()
  }

  /** Bytes in use on the device by kind, and of this model; on a GPU also what is free there. */
  async memory(): Promise<MemoryUse> {
    const model = await awaitNative(() => this.#native.bytes())
    return { ...this.#device.memory(), model }
  }

  /** Makes `memory().peak` count from now. */
  resetMemoryPeak(): void {
    this.#device.resetPeak()
  }

  /** Frees the weights; resolves when earlier calls are over and the memory is free. Again is harmless. */
  async dispose(): Promise<void> {
    await awaitNative(() => this.#native.dispose())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}
