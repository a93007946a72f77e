// Answers binding.gyp: `enabled` prints 1 or 0, `home` the toolkit folder, `libs` its folder of libraries, `flags` the
// -gencode list. QN_CUDA=auto|on|off; QN_CUDA_ARCHS="90a 120a" overrides the architectures.
const { execFileSync } = require('node:child_process')
const { existsSync, realpathSync } = require('node:fs')
const { dirname, join } = require('node:path')

const mode = process.env.QN_CUDA || 'auto'
if (!['auto', 'on', 'off'].includes(mode)) throw new Error(`Expected auto, on or off for QN_CUDA but received ${mode}`)

// Debian, NVIDIA's runfile and conda each choose another one.
const libs = (home) =>
  [
    'lib64',
    'lib',
    'targets/x86_64-linux/lib',
    'targets/sbsa-linux/lib',
    'lib/x86_64-linux-gnu',
    'lib/aarch64-linux-gnu',
  ]
    .map((folder) => join(home, folder))
    .find((folder) => existsSync(join(folder, 'libcudart_static.a')))

// A folder with the compiler, the headers and the static runtime: an nvcc on PATH may be a wrapper far from its toolkit.
function findHome() {
  const candidates = [process.env.CUDA_HOME, process.env.CUDA_PATH]
  try {
    candidates.push(dirname(dirname(realpathSync(execFileSync('which', ['nvcc'], { encoding: 'utf8' }).trim()))))
  } catch {
    // not on PATH; the usual folder is tried
  }
  candidates.push('/usr/local/cuda')
  const complete = (home) =>
    home && existsSync(join(home, 'bin/nvcc')) && existsSync(join(home, 'include/cuda_runtime.h')) && libs(home)
  return { home: candidates.find(complete), candidates: candidates.filter(Boolean) }
}

function archFlags(home) {
  const known = execFileSync(join(home, 'bin/nvcc'), ['--list-gpu-arch'], { encoding: 'utf8' }).split('\n')
  const chosen = process.env.QN_CUDA_ARCHS?.split(/[\s,]+/).filter(Boolean) ?? []
  const wanted = chosen.length > 0 ? chosen : ['80', '90a', '120a', '121a']
  const archs = wanted.filter((arch) => chosen.length > 0 || known.includes(`compute_${arch.replace(/[af]$/, '')}`))
  const flags = archs.map((arch) => `-gencode=arch=compute_${arch},code=sm_${arch}`)
  // For devices between and after those: the driver compiles it.
  if (chosen.length === 0) flags.push('-gencode=arch=compute_90,code=compute_90')
  return flags.join(' ')
}

const { home, candidates } = mode === 'off' ? { candidates: [] } : findHome()
if (mode === 'on' && !home) {
  throw new Error(
    'QN_CUDA=on but no CUDA toolkit (bin/nvcc, include/cuda_runtime.h, libcudart_static.a) was found; tried ' +
      `${candidates.join(', ')}. Set CUDA_HOME to the folder of the toolkit.`,
  )
}
const question = process.argv[2]
if (question === 'enabled') console.log(home ? 1 : 0)
else if (question === 'home') console.log(home ?? '')
else if (question === 'libs') console.log(home ? libs(home) : '')
else if (question === 'flags') console.log(home ? archFlags(home) : '')
