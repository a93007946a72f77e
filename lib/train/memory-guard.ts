import { EventEmitter } from 'node:events'
import type { MemoryGuardOptions, MemoryReading } from '../../types/memory'
import { checkDevice, checkFunction, checkInteger, checkNumber, checkOneOf, checkOptions } from '../check'
import { Qwen3Nvfp4Error } from '../errors'
import { readMemory } from './memory-observer'

const optionNames = [
  'gpuLimitBytes',
  'hostLimitBytes',
  'device',
  'overSeconds',
  'pollSeconds',
  'action',
  'exitCode',
  'observe',
] as const

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(2)} GiB`

/**
 * Watches memory and acts on this process alone once a limit is passed. Its `signal` stops whatever takes one, such as a
 * Trainer, which then leaves a checkpoint.
 *
 * Events: 'warn' with a Qwen3Nvfp4Error when a limit is passed (MEMORY_LIMIT), whatever the action, and when readings
 * begin to fail (MEMORY_UNOBSERVABLE). Without a listener it becomes a warning of the process.
 *
 * Readings are taken by a timer of this thread. Everything this library computes runs on threads of its own, so the timer
 * fires during steps; code of yours that blocks the event loop holds it up, and then the command `qwen3-nvfp4 guard`,
 * a process of its own, is what watches.
 */
export class MemoryGuard extends EventEmitter<{ warn: [Qwen3Nvfp4Error] }> {
  readonly #limits: { gpu: number; host: number }
  readonly #overMs: number
  readonly #pollMs: number
  readonly #action: 'warn' | 'abort' | 'exit'
  readonly #exitCode: number
  readonly #observe: () => Promise<MemoryReading>
  readonly #controller = new AbortController()
  #timer: NodeJS.Timeout | undefined
  #running = false
  #overSince: number | undefined
  /** Whether the present excursion, or the present row of failed readings, was reported. */
  #reported = false
  #failing = false
  #last: MemoryReading | undefined
  #peak = { gpuBytes: 0, processBytes: 0 }

  constructor(options: MemoryGuardOptions) {
    super()
    const given = checkOptions(options, 'options', optionNames)
    const limit = (name: 'gpuLimitBytes' | 'hostLimitBytes') =>
      given[name] === undefined ? Infinity : checkNumber(name, given[name], { above: 0 })
    this.#limits = { gpu: limit('gpuLimitBytes'), host: limit('hostLimitBytes') }
    const watchesGpu = this.#limits.gpu < Infinity
    if (!watchesGpu && this.#limits.host === Infinity) {
      throw new TypeError('Expected gpuLimitBytes, hostLimitBytes or both in options but received neither')
    }
    this.#overMs = 1000 * checkNumber('overSeconds', given.overSeconds ?? 0, { min: 0 })
    this.#pollMs = 1000 * checkNumber('pollSeconds', given.pollSeconds ?? 0.5, { min: 0.01, max: 86_400 })
    this.#action = checkOneOf('action', given.action ?? 'abort', ['warn', 'abort', 'exit'])
    this.#exitCode = checkInteger('exitCode', given.exitCode ?? 124, 1, 255)
    const device = checkDevice(given.device ?? 'cuda:0')
    this.#observe =
      checkFunction('observe', given.observe) ?? (() => readMemory({ device: watchesGpu ? device : 'cpu' }))
  }

  /** Aborts when a limit is passed and the action is 'abort'; its reason is the error of code MEMORY_LIMIT. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** The last reading, or undefined before the first. */
  get last(): MemoryReading | undefined {
    return this.#last
  }

  /** The most that any reading has seen. */
  get peak(): { gpuBytes: number; processBytes: number } {
    return { ...this.#peak }
  }

  /** Takes the first reading and goes on until `stop`. Rejects when what has a limit cannot be read. */
  async start(): Promise<void> {
    if (this.#running) return
    this.#running = true
    try {
      const reading = await this.#read()
      if (this.#running) this.#judge(reading)
    } catch (error) {
      this.#running = false
      throw error
    }
    this.#schedule()
  }

  /** Ends the watch; again is harmless. */
  stop(): void {
    this.#running = false
    clearTimeout(this.#timer)
  }

  [Symbol.dispose](): void {
    this.stop()
  }

  async #read(): Promise<MemoryReading> {
    const reading = await this.#observe()
    if (this.#limits.gpu < Infinity && !reading.gpu) {
      throw new Qwen3Nvfp4Error('MEMORY_UNOBSERVABLE', 'there is a limit for GPU memory, but no reading of it')
    }
    this.#last = reading
    this.#peak.gpuBytes = Math.max(this.#peak.gpuBytes, reading.gpu?.usedBytes ?? 0)
    this.#peak.processBytes = Math.max(this.#peak.processBytes, reading.processBytes)
    return reading
  }

  /** The next reading, a while after the last one was judged; never two at once. The timer keeps no process alive. */
  #schedule(): void {
    if (!this.#running) return
    this.#timer = setTimeout(() => void this.#poll(), this.#pollMs).unref()
  }

  async #poll(): Promise<void> {
    try {
      const reading = await this.#read()
      this.#failing = false
      if (this.#running) this.#judge(reading)
    } catch (cause) {
      this.#reportFailure(cause)
    }
    this.#schedule()
  }

  #judge(reading: MemoryReading): void {
    const passed = this.#describePassed(reading)
    if (passed === undefined) {
      this.#overSince = undefined
      this.#reported = false
      return
    }
    const now = performance.now()
    this.#overSince ??= now
    if (this.#reported || now - this.#overSince < this.#overMs) return
    this.#reported = true
    this.#act(new Qwen3Nvfp4Error('MEMORY_LIMIT', passed))
  }

  #describePassed({ gpu, processBytes }: MemoryReading): string | undefined {
    if (gpu && gpu.usedBytes > this.#limits.gpu) {
      const what = gpu.source === 'meminfo' ? 'memory that host and GPU share' : 'GPU memory'
      return `${gib(gpu.usedBytes)} of ${what} are in use (${gib(gpu.totalBytes)} in all), over the limit of ${gib(this.#limits.gpu)}`
    }
    if (processBytes <= this.#limits.host) return undefined
    return `${gib(processBytes)} of host memory are resident, over the limit of ${gib(this.#limits.host)}`
  }

  #act(error: Qwen3Nvfp4Error): void {
    this.#warn(error)
    if (this.#action === 'warn') return
    this.stop()
    if (this.#action === 'abort') this.#controller.abort(error)
    // After the warning has been written.
    else setImmediate(() => process.exit(this.#exitCode))
  }

  #reportFailure(cause: unknown): void {
    if (this.#failing || !this.#running) return
    this.#failing = true
    const message = `memory cannot be read any more: ${(cause as Error)?.message ?? String(cause)}`
    this.#warn(new Qwen3Nvfp4Error('MEMORY_UNOBSERVABLE', message, { cause }))
  }

  #warn(error: Qwen3Nvfp4Error): void {
    if (!this.emit('warn', error)) process.emitWarning(error)
  }
}
