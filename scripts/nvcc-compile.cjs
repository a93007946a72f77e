// Compiles one .cu file for binding.gyp: node scripts/nvcc-compile.cjs <cuda home> <input> <output> [nvcc flags...]
const { spawnSync } = require('node:child_process')
const { join } = require('node:path')

const [home, input, output, ...flags] = process.argv.slice(2)
const options = [
  '-std=c++20',
  '-O3',
  '-lineinfo',
  '-DQN_WITH_CUDA=1',
  // a*b+c rounds twice, as on the CPU, so that shared code gives the same bits.
  '--fmad=false',
  // constexpr functions of the host (core/dtype.h, std::bit_cast) are callable from kernels.
  '--expt-relaxed-constexpr',
  // The architectures compile side by side; nvcc starts no more than there are cores.
  '--threads=0',
  '-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unused-parameter,-ffp-contract=off',
]
const result = spawnSync(
  join(home, 'bin/nvcc'),
  [...options, ...flags.flatMap((flag) => flag.split(' ')).filter(Boolean), '-c', input, '-o', output],
  { stdio: 'inherit' },
)
if (result.error) console.error(`Cannot run nvcc: ${result.error.message}`)
process.exit(result.status ?? 1)
