// npm run test:asan: builds the addon with AddressSanitizer and UndefinedBehaviorSanitizer beside the normal build and runs
// the test suite on it, one file after the other. Arguments go to jest: names of files that shall run. Linux with g++ only.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, symlinkSync } from 'node:fs'
import { resolve } from 'node:path'

/** What a sanitizer build cannot answer, with the reason. */
const excluded = {
  'test/model/leak.test.ts': 'the sanitizer keeps freed memory in quarantine, so resident memory grows',
  'test/convert/memory.test.ts': 'the same',
}

const root = resolve(import.meta.dirname, '..')
const folder = resolve(root, 'build-asan')
mkdirSync(folder, { recursive: true })
for (const name of ['csrc', 'scripts', 'node_modules', 'binding.gyp', 'package.json']) {
  if (!existsSync(resolve(folder, name))) symlinkSync(resolve(root, name), resolve(folder, name))
}
const nodeGyp = resolve(root, 'node_modules/node-gyp/bin/node-gyp.js')
const build = spawnSync('node', [nodeGyp, 'rebuild', '-j', 'max', '--', '-Dqn_sanitize=address,undefined'], {
  cwd: folder,
  env: { ...process.env, QN_CUDA: 'off' },
  stdio: 'inherit',
})
if (build.status !== 0) process.exit(build.status ?? 1)

const runtime = (name) => execFileSync('g++', [`-print-file-name=${name}`], { encoding: 'utf8' }).trim()
execFileSync('npm', ['run', '--silent', 'build'], { cwd: root, stdio: 'inherit' })
for (const [file, reason] of Object.entries(excluded)) console.log(`skipped: ${file} (${reason})`)
const ignored = ['/node_modules/', '<rootDir>/test/gpu/', ...Object.keys(excluded).map((file) => `<rootDir>/${file}`)]
const options = ['--runInBand', ...ignored.map((pattern) => `--testPathIgnorePatterns=${pattern}`)]
const tests = spawnSync('node', ['node_modules/jest/bin/jest.js', ...process.argv.slice(2), ...options], {
  cwd: root,
  stdio: 'inherit',
  env: {
    ...process.env,
    QN_ADDON_PATH: resolve(folder, 'build/Release/qwen3_nvfp4.node'),
    LD_PRELOAD: runtime('libasan.so'),
    // Node itself frees nothing at exit, so leaks are the leak test's business, not LeakSanitizer's.
    ASAN_OPTIONS: 'detect_leaks=0:halt_on_error=1',
    UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
  },
})
process.exit(tests.status ?? 1)
