/** What `import` and `require` of the built package give, seen from outside of Jest. */
import { execFileSync } from 'node:child_process'
import { join, resolve } from 'node:path'
import { temporaryFolder } from '../support/files'

const root = resolve(__dirname, '../..')

function run(kind: 'module' | 'commonjs', code: string, env: NodeJS.ProcessEnv = {}): unknown {
  const output = execFileSync(process.execPath, [`--input-type=${kind}`], {
    input: code,
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...env },
  })
  return JSON.parse(output)
}

const names = (entry: string) => ({
  esm: run('module', `import * as entry from '${entry}'; console.log(JSON.stringify(Object.keys(entry).sort()))`),
  cjs: run('commonjs', `console.log(JSON.stringify(Object.keys(require('${entry}')).sort()))`),
})

describe('the built package', () => {
  it('gives the same names to import and to require', () => {
    const whole = names('qwen3-nvfp4')
    expect(whole.esm).toEqual(whole.cjs)
    expect(whole.esm).toEqual(expect.arrayContaining(['Qwen3Nvfp4Model', 'ChatSession', 'Tokenizer', 'DatReader']))
    const dat = names('qwen3-nvfp4/dat')
    expect(dat.esm).toEqual(dat.cjs)
    expect(whole.esm).toEqual(expect.arrayContaining(dat.esm as string[]))
  })

  it('runs the same addon for both: an error of one is an instance of the other', () => {
    const code = `
      import { createRequire } from 'node:module'
      import { Qwen3Nvfp4Error } from 'qwen3-nvfp4'
      const dat = createRequire(import.meta.url)('qwen3-nvfp4/dat')
      const error = await dat.DatReader.open('/nowhere.dat').catch((error) => error)
      console.log(JSON.stringify([error instanceof Qwen3Nvfp4Error, error.code, error.name]))`
    expect(run('module', code)).toEqual([true, 'IO_FAILED', 'Qwen3Nvfp4Error'])
  })

  it("reads and writes with 'qwen3-nvfp4/dat' where there is no addon", () => {
    const path = JSON.stringify(join(temporaryFolder(), 'a.dat'))
    const code = `
      import { readDat, writeDat } from 'qwen3-nvfp4/dat'
      await writeDat(${path}, { weight: { elementType: 6, shape: [2], data: Float32Array.of(1.5, -2) } })
      console.log(JSON.stringify([...(await readDat(${path})).get('weight').data]))`
    expect(run('module', code, { QN_ADDON_PATH: '/nowhere/addon.node' })).toEqual([1.5, -2])
  })

  it('says which file it looked for when QN_ADDON_PATH points nowhere', () => {
    const code = `
      const { quantizeNvfp4 } = require('qwen3-nvfp4')
      quantizeNvfp4(new Float32Array(16), { rows: 1, cols: 16 })
        .catch(({ code, message }) => console.log(JSON.stringify({ code, message })))`
    expect(run('commonjs', code, { QN_ADDON_PATH: '/nowhere/addon.node' })).toEqual({
      code: 'ADDON_LOAD_FAILED',
      message: expect.stringContaining('/nowhere/addon.node'),
    })
  })
})
