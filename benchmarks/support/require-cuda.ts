/** Ends a benchmark that has no CUDA device to run on, saying why. */
import { ops } from '../../test/support/native-ops'

const probe = ops.probeCuda!() as { devices: number; reason: string }
if (probe.devices === 0) {
  console.log(`no CUDA device: ${probe.reason}`)
  process.exit(0)
}
