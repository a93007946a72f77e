import { expectAssignable, expectError, expectType } from 'tsd'
import type { Qwen3Nvfp4Error } from 'qwen3-nvfp4'
import {
  MemoryGuard,
  type MemoryGuardOptions,
  type MemoryPhase,
  type MemoryReading,
  MemoryReport,
  type Qwen3Nvfp4Model,
  readMemory,
} from 'qwen3-nvfp4'

declare const model: Qwen3Nvfp4Model

expectType<Promise<MemoryReading>>(readMemory())
expectType<Promise<MemoryReading>>(readMemory({ device: 'cuda:0', openContext: false }))

const report = new MemoryReport(model)
expectType<Promise<MemoryPhase>>(report.record('model_loaded'))
expectType<Promise<void>>(report.save('memory.json'))

const guard = new MemoryGuard({ gpuLimitBytes: 108 * 2 ** 30, overSeconds: 2, action: 'exit', exitCode: 3 })
guard.on('warn', (error) => expectType<Qwen3Nvfp4Error>(error))
expectType<AbortSignal>(guard.signal)
expectType<Promise<void>>(guard.start())
expectAssignable<Disposable>(guard)
expectAssignable<MemoryGuardOptions>({ hostLimitBytes: 1, observe: () => readMemory() })
expectError(new MemoryGuard())
expectError(new MemoryGuard({ gpuLimitBytes: 1, action: 'kill' }))
