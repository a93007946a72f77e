// Answers binding.gyp: `enabled` prints 1 or 0, `home` the toolkit folder, `flags` the -gencode list.
// QN_CUDA=auto|on|off; QN_CUDA_ARCHS="90a 120a" overrides the architectures.
const { execFileSync } = require('node:child_process')
const { existsSync } = require('node:fs')
const { dirname, join } = require('node:path')

const mode = process.env.QN_CUDA ?? 'auto'
if (!['auto', 'on', 'off'].includes(mode)) throw new Error(`Expected auto, on or off for QN_CUDA but received ${mode}`)

function findHome() {
  const candidates = [process.env.CUDA_HOME, process.env.CUDA_PATH, '/usr/local/cuda']
  try {
    candidates.unshift(dirname(dirname(execFileSync('which', ['nvcc'], { encoding: 'utf8' }).trim())))
  } catch {
    // not on PATH; the usual folders are tried
  }
  return candidates.find((home) => home && existsSync(join(home, 'bin/nvcc')))
}

function archFlags(home) {
  const known = execFileSync(join(home, 'bin/nvcc'), ['--list-gpu-arch'], { encoding: 'utf8' })
  const wanted = process.env.QN_CUDA_ARCHS?.split(/[\s,]+/).filter(Boolean) ?? ['80', '90a', '120a', '121a']
  const archs = wanted.filter(
    (arch) => process.env.QN_CUDA_ARCHS || known.includes(`compute_${arch.replace(/[af]$/, '')}`),
  )
  const flags = archs.map((arch) => `-gencode=arch=compute_${arch},code=sm_${arch}`)
  if (!process.env.QN_CUDA_ARCHS) flags.push('-gencode=arch=compute_90,code=compute_90')
  return flags.join(' ')
}

const home = mode === 'off' ? undefined : findHome()
if (mode === 'on' && !home)
  throw new Error('QN_CUDA=on but nvcc was not found on PATH, in CUDA_HOME, CUDA_PATH or /usr/local/cuda')
const question = process.argv[2]
if (question === 'enabled') console.log(home ? 1 : 0)
else if (question === 'home') console.log(home ?? '')
else if (question === 'flags') console.log(home ? archFlags(home) : '')
