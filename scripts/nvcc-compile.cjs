// Compiles one .cu file for binding.gyp: node scripts/nvcc-compile.cjs <cuda home> <input> <output> [nvcc flags...]
const { spawnSync } = require('node:child_process')
const { join } = require('node:path')

const [home, input, output, ...flags] = process.argv.slice(2)
const result = spawnSync(
  join(home, 'bin/nvcc'),
  [
    '-std=c++20',
    '-O3',
    '-Xcompiler',
    '-fPIC,-fvisibility=hidden',
    '--fmad=false',
    '-lineinfo',
    ...flags.flatMap((f) => f.split(' ')).filter(Boolean),
    '-c',
    input,
    '-o',
    output,
  ],
  { stdio: 'inherit' },
)
process.exit(result.status ?? 1)
