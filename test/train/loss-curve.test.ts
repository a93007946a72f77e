/** Curves as files. In children: the libraries that draw are ES modules, which jest does not load. */
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { temporaryFolder } from '../support/files'

const root = resolve(__dirname, '../..')

/** Runs a script with `api` being the package, and gives what it returns. */
function evaluate(script: string, entry = join(root, 'dist/index.cjs')) {
  const code = `const api = require(${JSON.stringify(entry)})
    const main = async () => { ${script} }
    main().then((result) => console.log(JSON.stringify(result ?? null)), (error) => console.log(JSON.stringify({ code: error.code, message: error.message })))`
  const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', code], { encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
  return JSON.parse(stdout)
}

const curves = JSON.stringify({
  title: 'a < b',
  training: Array.from({ length: 50 }, (_, i) => ({ step: i + 1, loss: 5 * 0.9 ** i })),
  validation: [
    { step: 20, loss: 1 },
    { step: 40, loss: 0 },
  ],
})

test('an SVG has both curves, axes and an escaped title', () => {
  const svg: string = evaluate(`return api.renderLossCurve(${curves})`)
  expect(svg).toMatch(/^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg" width="900" height="480"/)
  expect(svg).toContain('>a &lt; b</text>')
  expect(svg).toContain('>training</text>')
  expect(svg).toContain('>validation</text>')
  expect(svg.match(/ d="M[\d.,L]+"/g)).toHaveLength(2)
  expect(svg).not.toMatch(/NaN|undefined|Infinity/)
})

test.each([
  ['nothing', '[]'],
  ['one step', '[{ step: 1, loss: 2 }]'],
  ['equal losses', '[{ step: 1, loss: 2 }, { step: 2, loss: 2 }]'],
])('a curve of %s is drawn too', (_, training) => {
  const svg: string = evaluate(`return api.renderLossCurve({ training: ${training} })`)
  expect(svg).not.toMatch(/NaN|undefined|Infinity/)
})

test('a file is an SVG or, with @resvg/resvg-js, a PNG', () => {
  const folder = temporaryFolder()
  for (const name of ['loss.svg', 'loss.png']) {
    evaluate(`return api.writeLossCurve(${JSON.stringify(join(folder, name))}, ${curves})`)
  }
  expect(readFileSync(join(folder, 'loss.svg'), 'utf8')).toMatch(/<\/svg>\n$/)
  expect(readFileSync(join(folder, 'loss.png')).subarray(1, 4).toString()).toBe('PNG')
})

test('without that package a PNG is refused with what to install, and nothing is written', () => {
  const folder = temporaryFolder()
  cpSync(join(root, 'dist/index.cjs'), join(folder, 'dist/index.cjs'))
  mkdirSync(join(folder, 'node_modules'))
  for (const name of readdirSync(join(root, 'node_modules'))) {
    if (name !== '@resvg') symlinkSync(join(root, 'node_modules', name), join(folder, 'node_modules', name))
  }
  const png = join(folder, 'loss.png')
  const error = evaluate(`return api.writeLossCurve(${JSON.stringify(png)}, ${curves})`, join(folder, 'dist/index.cjs'))
  expect(error).toMatchObject({
    code: 'DEPENDENCY_MISSING',
    message: expect.stringContaining('npm install @resvg/resvg-js'),
  })
  expect(existsSync(png)).toBe(false)
})

test('a trainer draws its losses and validations', () => {
  const path = join(temporaryFolder(), 'loss.svg')
  const reason = evaluate(`
    const model = await api.Qwen3Nvfp4Model.initialize(
      { hiddenSize: 32, numHiddenLayers: 1, numAttentionHeads: 2, numKeyValueHeads: 1, headDim: 16, intermediateSize: 64,
        vocabSize: 96, ropeTheta: 1e4, rmsNormEps: 1e-6, tieWordEmbeddings: true }, { threads: 1 })
    const data = await api.TrainingData.fromSamples([{ ids: [1, 2, 3], labels: [1, 2, 3] }])
    const trainer = new api.Trainer({ model, data, validation: data, maxTokens: 4, steps: 6, evalEvery: 2, lossCurve: ${JSON.stringify(path)} })
    return (await trainer.run()).reason`)
  expect(reason).toBe('steps')
  expect(readFileSync(path, 'utf8').match(/ d="M[\d.,L]+"/g)).toHaveLength(2)
})
