/** What memory holds now: of this process, of the host and of a GPU. */
import { readFile } from 'node:fs/promises'
import type { GpuMemory, HostMemory, MemoryReading } from '../../types/memory'
import { checkBoolean, checkDevice, checkOptions } from '../check'
import { awaitNative, Qwen3Nvfp4Error } from '../errors'
import { native } from '../native'

export interface ReadMemoryOptions {
  /** 'cuda:N' reads that GPU too. Default: 'cpu', host memory alone. */
  device?: string
  /**
   * How the GPU is asked: true by cudaMemGetInfo, whose context (524 MiB on an H200) a process that computes on
   * it has anyway; false by NVML, which takes no GPU memory, and by cudaMemGetInfo only where NVML cannot say. Default: true.
   */
  openContext?: boolean
}

/**
 * Bytes in use now. Asking the GPU happens on a thread that waits for no computation. A GPU whose memory is the host's
 * is read from /proc/meminfo, since the driver counts reclaimable file caches as used there. A GPU that cannot be read
 * is an error, CUDA_UNAVAILABLE or MEMORY_UNOBSERVABLE, never zero.
 */
export async function readMemory(options?: ReadMemoryOptions): Promise<MemoryReading> {
  const given = checkOptions(options, 'options', ['device', 'openContext'])
  const device = checkDevice(given.device ?? 'cpu')
  const openContext = checkBoolean('openContext', given.openContext ?? true)
  const host = await readHostMemory()
  const gpu = device === 'cpu' ? undefined : await readGpu(device, openContext, host)
  return { processBytes: process.memoryUsage.rss(), ...(host && { host }), ...(gpu && { gpu }) }
}

/** Undefined where there is no /proc/meminfo. */
export async function readHostMemory(): Promise<HostMemory | undefined> {
  const text = await readFile('/proc/meminfo', 'utf8').catch(() => '')
  const bytes = (field: string) => {
    const kib = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1]
    return kib === undefined ? undefined : Number(kib) * 1024
  }
  const [availableBytes, totalBytes] = [bytes('MemAvailable'), bytes('MemTotal')]
  return availableBytes === undefined || totalBytes === undefined ? undefined : { availableBytes, totalBytes }
}

async function readGpu(device: string, openContext: boolean, host: HostMemory | undefined): Promise<GpuMemory> {
  const index = Number(device.slice('cuda:'.length))
  const found = await awaitNative(() => native().gpuMemory(index, openContext))
  const { unified, free, total, processes, reason } = found
  const rest = { unified, ...(processes && { processes }) }
  if (unified && host) {
    return { usedBytes: host.totalBytes - host.availableBytes, totalBytes: host.totalBytes, source: 'meminfo', ...rest }
  }
  if (free !== undefined && total !== undefined) {
    return { usedBytes: total - free, totalBytes: total, source: openContext ? 'cuda' : 'nvml', ...rest }
  }
  if (!openContext) return { ...(await readGpu(device, true, host)), ...rest }
  throw new Qwen3Nvfp4Error('MEMORY_UNOBSERVABLE', `the memory of ${device} cannot be read: ${reason}`)
}
