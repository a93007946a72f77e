/** How lib/ calls the addon: devices, and calls that an AbortSignal stops. */
import type { NativeCancel, NativeDevice } from '../types/native'
import type { DeviceOptions } from '../types/options'
import { checkDevice, checkInteger } from './check'
import { callNative, fromNative } from './errors'
import { native } from './native'

/** Runs a native job; when `signal` aborts, the job is cancelled and the promise rejects with the signal's reason. */
export async function runNative<T>(
  signal: AbortSignal | undefined,
  start: (cancel?: NativeCancel) => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted()
  const cancel = signal && new (native().Cancel)()
  const abort = () => cancel?.cancel()
  signal?.addEventListener('abort', abort, { once: true })
  try {
    return await start(cancel)
  } catch (error) {
    if (signal?.aborted && (error as { code?: unknown }).code === 'ABORTED') throw signal.reason
    throw fromNative(error)
  } finally {
    signal?.removeEventListener('abort', abort)
  }
}

/** The device of these options. QN_ISA chooses an instruction set below the best one, for comparisons. */
export function openDevice({ device = 'cpu', threads }: DeviceOptions): NativeDevice {
  checkDevice(device)
  const count = threads === undefined ? 0 : checkInteger('threads', threads, 1, 1024)
  return callNative(() => new (native().Device)(device, count, process.env['QN_ISA'] ?? ''))
}
