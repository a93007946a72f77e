/** `guard`: runs a program and ends it when memory passes a limit. */
import { type ChildProcess, spawn } from 'node:child_process'
import { readlink } from 'node:fs/promises'
import { Command } from 'commander'
import { type GpuMemory, MemoryGuard, type MemoryReading, Qwen3Nvfp4Error, readMemory } from 'qwen3-nvfp4'
import { codeOfSignal, Exit, exitCodes, usage } from './exit'
import { gib, warn } from './output'
import { sessionMembers, signalSession } from './process-session'
import { device, flag, number, oneOf } from './values'

interface Flags {
  gpuLimitGb?: number
  hostLimitGb?: number
  device: string
  scope: 'gpu' | 'child'
  overSecs: number
  pollSecs: number
  graceSecs: number
  logSecs?: number
}

const passedOn: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT']

export function guardCommand(): Command {
  const positive = number({ above: 0 })
  return new Command('guard')
    .summary('run a program and end it when memory passes a limit')
    .description(
      'run a program and end it, with everything it started, when memory passes a limit. One GB is 2^30 bytes. The exit ' +
        "code is the program's own, 128 + n when signal n ended it, or 124 when the limit was passed",
    )
    .usage('[options] -- <program> [arguments...]')
    .argument('<program...>', 'the program and its arguments')
    .passThroughOptions()
    .addOption(flag('--gpu-limit-gb <x>', 'most GPU memory in use, above 0 (default: none)', positive))
    .addOption(
      flag('--host-limit-gb <x>', "most host memory of the program's processes, above 0 (default: none)", positive),
    )
    .addOption(flag('--device <name>', "the GPU, 'cuda:N'", device).default('cuda:0'))
    .addOption(
      flag(
        '--scope <what>',
        'what counts for --gpu-limit-gb: gpu, all of its processes; child, those of the program alone',
        oneOf('gpu', 'child'),
      ).default('gpu'),
    )
    .addOption(flag('--over-secs <s>', 'how long a limit must be passed, 0 or more', number({ min: 0 })).default(0))
    .addOption(
      flag('--poll-secs <s>', 'seconds between readings, 0.01 or more', number({ min: 0.01, max: 86_400 })).default(
        0.5,
      ),
    )
    .addOption(flag('--grace-secs <s>', 'seconds from SIGTERM to SIGKILL, 0 or more', number({ min: 0 })).default(10))
    .addOption(flag('--log-secs <s>', 'write a reading to stderr this often, above 0 (default: never)', positive))
    .action(run)
}

async function run(program: string[], flags: Flags): Promise<void> {
  const { gpuLimitGb, hostLimitGb } = flags
  if (gpuLimitGb === undefined && hostLimitGb === undefined) {
    throw usage('Expected --gpu-limit-gb, --host-limit-gb or both but received neither')
  }
  if (gpuLimitGb !== undefined && flags.device === 'cpu') throw usage("Expected 'cuda:N' for --device but received cpu")
  // Before anything runs: what cannot be read cannot be guarded.
  const watch = new Watch(flags)
  const first = await watch.observe()
  const child = await start(program)
  watch.child = child.pid!
  const limits = [gpuLimitGb && `GPU ${gpuLimitGb} GB`, hostLimitGb && `host ${hostLimitGb} GB`]
    .filter(Boolean)
    .join(', ')
  say(`pid ${process.pid}, child ${child.pid}; limit ${limits}; now ${describe(first, flags)}`)
  throw new Exit(await guardChild(child, watch, flags))
}

const say = (message: string) => warn(`guard: ${message}`)

/** In a session of its own, so that all of it can be counted and signalled. Rejects with 126 or 127 as a shell does. */
function start([program, ...args]: string[]): Promise<ChildProcess> {
  return new Promise((resolve, reject) => {
    const child = spawn(program!, args, { stdio: 'inherit', detached: true })
    child.once('spawn', () => resolve(child))
    child.once('error', (error: NodeJS.ErrnoException) => {
      const code = error.code === 'ENOENT' ? exitCodes.notFound : exitCodes.cannotRun
      reject(new Exit(code, `cannot run ${program}: ${error.message}`))
    })
  })
}

/** Resolves to the exit code once the child has ended. */
async function guardChild(child: ChildProcess, watch: Watch, flags: Flags): Promise<number> {
  const gigabytes = (value: number | undefined) => (value === undefined ? undefined : value * 2 ** 30)
  const guard = new MemoryGuard({
    gpuLimitBytes: gigabytes(flags.gpuLimitGb),
    hostLimitBytes: gigabytes(flags.hostLimitGb),
    overSeconds: flags.overSecs,
    pollSeconds: flags.pollSecs,
    action: 'warn',
    observe: () => watch.observe(),
  })
  const pass = (signal: NodeJS.Signals) => void signalSession(child.pid!, signal)
  for (const signal of passedOn) process.on(signal, pass)
  let limitPassed = false
  let kill: NodeJS.Timeout | undefined
  guard.on('warn', (error) => {
    say(error.message)
    if (error.code !== 'MEMORY_LIMIT' || limitPassed) return
    limitPassed = true
    say(`SIGTERM to child ${child.pid} and what it started`)
    pass('SIGTERM')
    kill = setTimeout(() => {
      say(`still there after ${flags.graceSecs} s: SIGKILL`)
      pass('SIGKILL')
    }, flags.graceSecs * 1000)
  })
  const ended = new Promise<number>((resolve) => {
    child.once('exit', (code, signal) => resolve(code ?? codeOfSignal(signal!)))
  })
  // A first reading that fails after the one before the start is as one that fails later.
  void guard.start().catch((error: Error) => say(error.message))
  const code = await ended
  guard.stop()
  clearTimeout(kill)
  for (const signal of passedOn) process.off(signal, pass)
  const { gpuBytes, processBytes } = guard.peak
  const gpu = flags.gpuLimitGb === undefined ? '' : `GPU ${gib(gpuBytes)}, `
  say(`child ended with code ${code}; highest readings: ${gpu}host ${gib(processBytes)}`)
  return limitPassed ? exitCodes.limit : code
}

/** Takes the readings: of the GPU, and of the child's processes once there is one. */
class Watch {
  child: number | undefined
  readonly #flags: Flags
  #logged = performance.now()

  constructor(flags: Flags) {
    this.#flags = flags
  }

  async observe(): Promise<MemoryReading> {
    const { device, gpuLimitGb, hostLimitGb, scope, logSecs } = this.#flags
    // NVML first: a context of our own would take hundreds of MiB of what we guard.
    const reading = await readMemory({ device: gpuLimitGb === undefined ? 'cpu' : device, openContext: false })
    const members = this.child === undefined ? [] : await sessionMembers(this.child)
    if (!members && hostLimitGb !== undefined)
      throw unobservable("the program's host memory cannot be read without /proc")
    const pids = new Set(members?.map(({ pid }) => pid))
    const gpu = reading.gpu && (scope === 'gpu' ? reading.gpu : await ofProcesses(reading.gpu, pids, device))
    const processBytes = members?.reduce((sum, { bytes }) => sum + bytes, 0) ?? 0
    const seen = { ...reading, processBytes, ...(gpu && { gpu }) }
    if (logSecs !== undefined && performance.now() - this.#logged >= logSecs * 1000) {
      this.#logged = performance.now()
      say(describe(seen, this.#flags))
    }
    return seen
  }
}

const unobservable = (message: string) => new Qwen3Nvfp4Error('MEMORY_UNOBSERVABLE', message)

/** The kernel's own number of the first pid namespace, whose pids are those that the driver tells. */
const hostPidNamespace = 'pid:[4026531836]'

async function ofProcesses(gpu: GpuMemory, pids: ReadonlySet<number>, device: string): Promise<GpuMemory> {
  if (!gpu.processes)
    throw unobservable(`the driver does not say what single processes hold on ${device}; use --scope gpu`)
  if ((await readlink('/proc/self/ns/pid').catch(() => '')) !== hostPidNamespace) {
    throw unobservable('within a container the pids of the driver are not ours; use --scope gpu')
  }
  const usedBytes = gpu.processes.reduce((sum, { pid, bytes }) => sum + (pids.has(pid) ? bytes : 0), 0)
  return { ...gpu, usedBytes }
}

function describe({ gpu, processBytes }: MemoryReading, { scope }: Flags): string {
  const sources = { nvml: 'NVML', cuda: 'cudaMemGetInfo', meminfo: '/proc/meminfo, shared with the host' }
  const whose = scope === 'child' ? 'of the child' : 'in use'
  const ofGpu = gpu ? `GPU ${gib(gpu.usedBytes)} ${whose} of ${gib(gpu.totalBytes)} (${sources[gpu.source]}), ` : ''
  return `${ofGpu}child in host memory ${gib(processBytes)}`
}
