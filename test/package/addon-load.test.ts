/** What someone sees whose addon is missing or broken. */
import { execFileSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

const root = resolve(__dirname, '../..')

describe('a package whose addon', () => {
  let folder: string
  beforeEach(() => {
    // Inside the repository, so that the dependencies are found; its own package.json makes it the package's root.
    folder = mkdtempSync(join(root, '.qn-package-'))
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ name: 'qwen3-nvfp4', main: 'dist/index.cjs' }))
    cpSync(join(root, 'dist'), join(folder, 'dist'), { recursive: true })
  })
  afterEach(() => rmSync(folder, { recursive: true }))

  const failure = () => {
    const text = `const { Qwen3Nvfp4Model } = require('./dist/index.cjs')
      Qwen3Nvfp4Model.initialize({ hiddenSize: 32, numHiddenLayers: 1, numAttentionHeads: 2, numKeyValueHeads: 2, headDim: 16,
        intermediateSize: 32, vocabSize: 32, ropeTheta: 1e4, rmsNormEps: 1e-6, tieWordEmbeddings: true })
        .catch((error) => console.log(JSON.stringify({ code: error.code, message: error.message })))`
    const output = execFileSync(process.execPath, ['--input-type=commonjs'], {
      input: text,
      cwd: folder,
      env: { ...process.env, QN_ADDON_PATH: '' },
      encoding: 'utf8',
    })
    return JSON.parse(output) as { code: string; message: string }
  }

  test('is missing loads all the same, and says what was tried and what to do when it is needed', () => {
    const { code, message } = failure()
    expect(code).toBe('ADDON_LOAD_FAILED')
    expect(message).toContain(join(folder, 'build', 'Release', 'qwen3_nvfp4.node'))
    expect(message).toContain('npm rebuild qwen3-nvfp4')
  })

  test('is no library for this machine says why', () => {
    mkdirSync(join(folder, 'build', 'Release'), { recursive: true })
    writeFileSync(join(folder, 'build', 'Release', 'qwen3_nvfp4.node'), 'not a library')
    const { code, message } = failure()
    expect(code).toBe('ADDON_LOAD_FAILED')
    expect(message).toContain('qwen3_nvfp4.node')
    expect(message).toContain('npm rebuild qwen3-nvfp4')
  })
})
