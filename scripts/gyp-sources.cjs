// Lists sources for binding.gyp, one per line: node scripts/gyp-sources.cjs <dir>... [--suffix=_avx2.cpp | --cuda | --headers]
// A new op is picked up without touching binding.gyp; instruction-set variants are named by suffix.
const { readdirSync, existsSync } = require('node:fs')
const { join } = require('node:path')

const flags = process.argv.slice(2).filter((a) => a.startsWith('--'))
const dirs = process.argv.slice(2).filter((a) => !a.startsWith('--'))
const suffix = flags.find((f) => f.startsWith('--suffix='))?.slice('--suffix='.length)
const variants = ['_avx2.cpp', '_avx512.cpp', '_neon.cpp']
const root = join(__dirname, '..')

const wanted = (name) => {
  if (flags.includes('--cuda')) return name.endsWith('.cu')
  if (flags.includes('--headers')) return name.endsWith('.h')
  if (suffix) return name.endsWith(suffix)
  return name.endsWith('.cpp') && !variants.some((v) => name.endsWith(v))
}
for (const dir of dirs) {
  if (!existsSync(join(root, dir))) continue
  for (const name of readdirSync(join(root, dir), { recursive: true }).sort()) {
    if (wanted(name)) process.stdout.write(`${join(dir, name).replaceAll('\\', '/')}\n`)
  }
}
