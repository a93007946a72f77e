import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { errorCodes } from 'qwen3-nvfp4'

const root = resolve(__dirname, '../..')
const read = (path: string): string => readFileSync(join(root, path), 'utf8')
const sources = (folder: string, pattern: RegExp): string[] =>
  readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => pattern.test(name))
    .map((name) => join(folder, name))

/** What a C++ enumerator becomes in JavaScript, from code_name(). */
const nativeCodes = [...read('csrc/core/status.cpp').matchAll(/case Code::(k\w+):\s+return "([A-Z_]+)";/g)].map(
  ([, enumerator, code]) => ({ enumerator: enumerator!, code: code! }),
)
const cpp = sources('csrc', /\.(cpp|h|cu)$/)
  .filter((path) => !path.startsWith('csrc/core/status.'))
  .map(read)
  .join('\n')
const typescript = sources('lib', /\.ts$/)
  .filter((path) => path !== 'lib/errors.ts')
  .map(read)
  .join('\n')

describe('the table of error codes', () => {
  it('is in docs/errors.md, each with a meaning and a remedy, and nothing else is', () => {
    execFileSync('node', ['scripts/error-docs.mjs', '--check'], { cwd: root })
    const documented = [...read('docs/errors.md').matchAll(/^\| `([A-Z_]+)` \| \S.* \| \S.* \|$/gm)].map(([, c]) => c)
    expect(documented).toEqual(Object.keys(errorCodes))
  })

  it('names every enumerator of the core in the order of its header', () => {
    const enumerators = [...read('csrc/core/status.h').matchAll(/^ {2}(k\w+),/gm)].map(([, name]) => name)
    expect(nativeCodes.map(({ enumerator }) => enumerator)).toEqual(enumerators)
    expect(Object.keys(errorCodes).slice(0, enumerators.length)).toEqual(nativeCodes.map(({ code }) => code))
  })

  it.each(nativeCodes)('$code is thrown by the core', ({ enumerator }) => {
    expect(cpp).toMatch(new RegExp(`Code::${enumerator}\\b`))
  })

  it.each(Object.keys(errorCodes).slice(nativeCodes.length))('%s is thrown by lib', (code) => {
    expect(typescript).toContain(`'${code}'`)
  })
})
