/** The guard on readings made here; the command's tests have it act on real processes. */
import { spawnSync } from 'node:child_process'
import { resolve } from 'node:path'
import type { Qwen3Nvfp4Error } from 'qwen3-nvfp4'
import { MemoryGuard, type MemoryGuardOptions, type MemoryReading, readMemory } from 'qwen3-nvfp4'

const root = resolve(__dirname, '../..')
const gib = 2 ** 30

const reading = (gpuGib: number, processGib = 1): MemoryReading => ({
  processBytes: processGib * gib,
  gpu: { usedBytes: gpuGib * gib, totalBytes: 100 * gib, unified: false, source: 'cuda' },
})

/** Gives these readings in order, the last one for ever; an Error is thrown. */
function observer(...readings: (MemoryReading | Error)[]) {
  let taken = 0
  const observe = async () => {
    const next = readings[Math.min(taken++, readings.length - 1)]!
    if (next instanceof Error) throw next
    return next
  }
  return { observe, taken: () => taken }
}

const guards: MemoryGuard[] = []
afterEach(() => guards.splice(0).forEach((guard) => guard.stop()))

function guardOf(options: MemoryGuardOptions): { guard: MemoryGuard; warnings: Qwen3Nvfp4Error[] } {
  const guard = new MemoryGuard({ pollSeconds: 0.01, gpuLimitBytes: 10 * gib, ...options })
  const warnings: Qwen3Nvfp4Error[] = []
  guard.on('warn', (error) => warnings.push(error))
  guards.push(guard)
  return { guard, warnings }
}

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 500 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 5))
  expect(condition()).toBe(true)
}

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))

describe('MemoryGuard', () => {
  it('aborts its signal with the bytes and the limit, and reads no more', async () => {
    const { observe, taken } = observer(reading(9), reading(10), reading(11))
    const { guard, warnings } = guardOf({ observe })
    await guard.start()
    expect(guard.signal.aborted).toBe(false)
    await until(() => guard.signal.aborted)
    const message = '11.00 GiB of GPU memory are in use (100.00 GiB in all), over the limit of 10.00 GiB'
    expect(guard.signal.reason).toMatchObject({ code: 'MEMORY_LIMIT', message })
    expect(warnings).toEqual([guard.signal.reason])
    expect(guard.peak).toEqual({ gpuBytes: 11 * gib, processBytes: gib })
    await wait(40)
    expect(taken()).toBe(3)
  })

  it('acts at the first reading when that is over already', async () => {
    const { guard } = guardOf({ observe: observer(reading(50)).observe })
    await guard.start()
    expect(guard.signal.aborted).toBe(true)
  })

  it('watches host memory of the process', async () => {
    const { guard } = guardOf({
      observe: observer(reading(99, 5)).observe,
      gpuLimitBytes: undefined,
      hostLimitBytes: 4 * gib,
    })
    await guard.start()
    expect(guard.signal.reason.message).toBe('5.00 GiB of host memory are resident, over the limit of 4.00 GiB')
  })

  it('bears a short excursion when overSeconds is longer', async () => {
    const readings = [reading(11), reading(11), reading(9), reading(11)]
    const { guard } = guardOf({ observe: observer(...readings).observe, overSeconds: 0.15 })
    const start = performance.now()
    await guard.start()
    await until(() => guard.signal.aborted)
    expect(performance.now() - start).toBeGreaterThan(150)
  })

  it('warns once for every excursion and leaves the signal alone with action warn', async () => {
    const readings = [reading(11), reading(12), reading(9), reading(11), reading(11)]
    const { observe, taken } = observer(...readings)
    const { guard, warnings } = guardOf({ observe, action: 'warn' })
    await guard.start()
    await until(() => taken() > 8)
    expect(warnings.map(({ code }) => code)).toEqual(['MEMORY_LIMIT', 'MEMORY_LIMIT'])
    expect(guard.signal.aborted).toBe(false)
  })

  it('does not start where memory cannot be read', async () => {
    const { guard } = guardOf({ observe: observer(new Error('no driver')).observe })
    await expect(guard.start()).rejects.toThrow('no driver')
    const none = guardOf({ observe: async () => ({ processBytes: 1 }) })
    await expect(none.guard.start()).rejects.toMatchObject({ code: 'MEMORY_UNOBSERVABLE' })
  })

  it('says once when readings begin to fail, and goes on', async () => {
    const failure = new Error('the driver went away')
    const { observe } = observer(reading(1), failure, failure, reading(1), failure, reading(20))
    const { guard, warnings } = guardOf({ observe })
    await guard.start()
    await until(() => guard.signal.aborted)
    expect(warnings.map(({ code }) => code)).toEqual(['MEMORY_UNOBSERVABLE', 'MEMORY_UNOBSERVABLE', 'MEMORY_LIMIT'])
    expect(warnings[0]).toMatchObject({
      message: 'memory cannot be read any more: the driver went away',
      cause: failure,
    })
  })

  it('reads this process by default', async () => {
    const { guard } = guardOf({ gpuLimitBytes: undefined, hostLimitBytes: 1 })
    await guard.start()
    expect(guard.signal.reason.code).toBe('MEMORY_LIMIT')
    expect(guard.last!.processBytes).toBeGreaterThan(2 ** 20)
  })

  it('ends the process with its exit code, after the warning', () => {
    const code = `
      import { MemoryGuard } from 'qwen3-nvfp4'
      await new MemoryGuard({ hostLimitBytes: 1, action: 'exit', exitCode: 7 }).start()
      setTimeout(() => {}, 10_000)`
    const child = spawnSync(process.execPath, ['--input-type=module', '-e', code], { cwd: root, encoding: 'utf8' })
    expect(child.status).toBe(7)
    expect(child.stderr).toMatch(/MEMORY_LIMIT|of host memory are resident, over the limit of 0\.00 GiB/)
  })

  it('refuses misuse by name', () => {
    expect(() => new MemoryGuard({})).toThrow('Expected gpuLimitBytes, hostLimitBytes or both')
    expect(() => new MemoryGuard({ gpuLimitBytes: 0 })).toThrow(/above 0 for gpuLimitBytes but received 0/)
    expect(() => new MemoryGuard({ gpuLimitBytes: 1, pollSeconds: 0 })).toThrow(/pollSeconds/)
    expect(() => new MemoryGuard({ gpuLimitBytes: 1, action: 'kill' as never })).toThrow(/'warn' | 'abort' | 'exit'/)
    expect(() => new MemoryGuard({ gpuLimitByte: 1 } as never)).toThrow(/did you mean gpuLimitBytes/)
  })
})

describe('readMemory', () => {
  it('reads host memory, and says why a GPU cannot be read', async () => {
    const { processBytes, host, gpu } = await readMemory()
    expect(processBytes).toBeGreaterThan(2 ** 20)
    if (host) expect(host.availableBytes).toBeLessThan(host.totalBytes)
    expect(gpu).toBeUndefined()
    await expect(readMemory({ device: 'cuda:99' })).rejects.toMatchObject({ code: 'CUDA_UNAVAILABLE' })
  })
})
