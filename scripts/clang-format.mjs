// Formats (`--write`) or checks (`--check`) every C++ and CUDA file under csrc/ with the pinned clang-format.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'

const files = readdirSync('csrc', { recursive: true })
  .filter((name) => /\.(h|cpp|cu|cuh)$/.test(name))
  .map((name) => `csrc/${name}`)
const mode = process.argv.includes('--write') ? ['-i'] : ['--dry-run', '--Werror']
process.exit(spawnSync('node_modules/.bin/clang-format', [...mode, ...files], { stdio: 'inherit' }).status ?? 1)
