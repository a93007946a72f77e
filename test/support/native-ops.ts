/** The synchronous single ops of the addon, for test/ops and benchmarks/ops (see csrc/binding/ops/ops.h). */
import bindings from 'bindings'
import { createRequire } from 'node:module'
import { resolve } from 'node:path'

export { expectClose, expectSameBytes } from './expect-close'

export interface OpOptions {
  isa?: 'portable' | 'neon' | 'avx2' | 'avx512'
  threads?: number
}

// eslint-disable-next-line @typescript-eslint/no-explicit-any
type Ops = Record<string, (...args: any[]) => any>

// Jest runs this as CommonJS, tsx as an ES module; both start in the repository root.
const load = createRequire(resolve('package.json'))

/** The normal build, or the one that QN_ADDON_PATH names (scripts/test-asan.mjs). */
const addon = process.env.QN_ADDON_PATH
  ? (load(process.env.QN_ADDON_PATH) as { ops: Ops })
  : (bindings({ bindings: 'qwen3_nvfp4', module_root: resolve('.') }) as { ops: Ops })

export const ops: Ops = addon.ops

// Looking up a global takes a Jest test a tenth of a microsecond: too long for every one of many values.
const { imul } = Math

/** Deterministic, non-degenerate values in (-1, 1) times `scale` (mulberry32). */
export function seededValues(count: number, seed: number, scale = 1): Float32Array {
  const values = new Float32Array(count)
  let state = seed >>> 0
  for (let i = 0; i < count; i++) {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = imul(t ^ (t >>> 15), t | 1)
    t ^= t + imul(t ^ (t >>> 7), t | 61)
    values[i] = (((t ^ (t >>> 14)) >>> 0) / 2147483648 - 1) * scale
  }
  return values
}
