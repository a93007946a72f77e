import { defineConfig } from 'tsup'

// Two entries: the whole SDK, and the .dat codec alone for tools that never load the addon.
export default defineConfig({
  entry: { index: 'lib/index.ts', dat: 'lib/dat.ts' },
  format: ['esm', 'cjs'],
  dts: true,
  clean: true,
  shims: true,
  target: 'node20',
  sourcemap: true,
  splitting: false,
})
