import { defineConfig } from 'tsup'

const shared = { target: 'node20', sourcemap: true, splitting: false, shims: true } as const

export default defineConfig([
  // Two entries: the whole SDK, and the .dat codec alone for tools that never load the addon.
  {
    ...shared,
    entry: { index: 'lib/index.ts', dat: 'lib/dat.ts' },
    format: ['esm', 'cjs'],
    dts: true,
    clean: ['!cli.*', '!tokenizer-thread.*'],
  },
  // The command imports the package by name, as its users do.
  { ...shared, entry: { cli: 'lib/cli/main.ts' }, format: ['esm'], external: ['qwen3-nvfp4'] },
  // What a thread of lib/train/tokenizer-threads.ts runs.
  { ...shared, entry: { 'tokenizer-thread': 'lib/train/tokenizer-thread.ts' }, format: ['esm'] },
])
