import type { CheckpointWarning } from '../../types/checkpoint'

/** Hands warnings to `onWarning`; without one they become warnings of the process, which Node prints once each. */
export function emitWarnings(
  warnings: readonly CheckpointWarning[],
  onWarning: ((warning: CheckpointWarning) => void) | undefined,
): void {
  for (const warning of warnings) {
    if (onWarning) onWarning(warning)
    else process.emitWarning(warning.message, { type: 'Qwen3Nvfp4Warning', code: warning.code })
  }
}
