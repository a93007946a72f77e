/** What memory holds at one moment, and what watches it. */
import type { MemoryEstimate } from './options'

export interface HostMemory {
  /** Bytes that can be had without swapping, as /proc/meminfo says. */
  availableBytes: number
  totalBytes: number
}

export interface GpuMemory {
  /** Bytes in use on the whole GPU by all processes; where it shares the host's memory, those of the host. */
  usedBytes: number
  totalBytes: number
  /** Whether the GPU has no memory of its own but shares the host's. */
  unified: boolean
  /** Who says so: cudaMemGetInfo, NVIDIA's management library, or /proc/meminfo of unified memory. */
  source: 'cuda' | 'nvml' | 'meminfo'
  /** The processes that compute on it, with pids of the host, where the driver says the bytes of each. */
  processes?: { pid: number; bytes: number }[]
}

export interface MemoryReading {
  /** Bytes resident in host memory of the process, or processes, that are watched. */
  processBytes: number
  /** Absent where there is no /proc/meminfo. */
  host?: HostMemory
  /** Absent when no GPU was asked for. */
  gpu?: GpuMemory
}

export interface MemoryGuardOptions {
  /** Most bytes in use on the GPU by all processes, above 0; on unified memory those of the host. Default: none. */
  gpuLimitBytes?: number
  /** Most bytes resident in host memory of this process, above 0. Default: none. One limit of the two is needed. */
  hostLimitBytes?: number
  /** The GPU of gpuLimitBytes. Default: 'cuda:0'. */
  device?: string
  /** How long a limit must be passed without a break, in seconds, 0 or more. Default: 0, one reading. */
  overSeconds?: number
  /** Seconds between readings, 0.01 or more. Default: 0.5. */
  pollSeconds?: number
  /**
   * What happens then, beside the event 'warn': nothing more, `signal` aborts, or the process exits. Default: 'abort'.
   */
  action?: 'warn' | 'abort' | 'exit'
  /** Exit code of action 'exit', 1 to 255. Default: 124. */
  exitCode?: number
  /** Takes the readings. Default: `readMemory` of the device. */
  observe?: () => Promise<MemoryReading>
}

/** One moment of a MemoryReport. */
export interface MemoryPhase {
  /** 'model_loaded', 'state_initialized', 'forward_done', 'backward_done', 'optimizer_step_done', or a name of yours. */
  phase: string
  /** Since the report began. */
  seconds: number
  /** Of the whole GPU, all processes, as cudaMemGetInfo says; null on the CPU. */
  gpu: { freeBytes: number; totalBytes: number } | null
  /** Bytes that this library holds on the device by kind, and the highest total since it was opened. */
  arena: MemoryEstimate & { peak: number }
  /** Bytes resident in host memory of this process. */
  processBytes: number
  /** null where there is no /proc/meminfo. */
  host: HostMemory | null
}

export interface MemoryReportJson {
  format: 'qwen3-nvfp4-memory'
  version: 1
  device: string
  parameters: number
  phases: MemoryPhase[]
}
