// Keeps docs/errors.md in step with the one table of codes, lib/errors.ts: codes, order and meanings come from there,
// remedies are written in the document and kept. --check changes nothing and fails when the document is out of step.
import { readFileSync, writeFileSync } from 'node:fs'
import { resolve } from 'node:path'
import ts from 'typescript'

const root = resolve(import.meta.dirname, '..')
const document = resolve(root, 'docs/errors.md')

async function errorCodes() {
  const source = readFileSync(resolve(root, 'lib/errors.ts'), 'utf8')
  const { outputText } = ts.transpileModule(source, { compilerOptions: { module: 'ESNext', target: 'ES2022' } })
  const module = await import(`data:text/javascript,${encodeURIComponent(outputText)}`)
  return Object.entries(module.errorCodes)
}

const rowPattern = /^\| `([A-Z_]+)` \| (.*?) \| (.*) \|$/gm

/** The document with the rows that the table asks for. A code without a remedy yet gets an empty one. */
function rewrite(text, codes) {
  const remedies = new Map([...text.matchAll(rowPattern)].map(([, code, , remedy]) => [code, remedy]))
  const rows = codes.map(([code, meaning]) => `| \`${code}\` | ${meaning} | ${remedies.get(code) ?? ''} |`)
  const head = text.slice(0, text.indexOf('| code |'))
  return `${head}| code | meaning | what to do |\n| --- | --- | --- |\n${rows.join('\n')}\n`
}

const text = readFileSync(document, 'utf8')
const codes = await errorCodes()
const wanted = rewrite(text, codes)
if (!process.argv.includes('--check')) {
  writeFileSync(document, wanted)
} else if (wanted !== text) {
  console.error('docs/errors.md is out of step with lib/errors.ts: run "node scripts/error-docs.mjs"')
  process.exit(1)
}
const bare = [...wanted.matchAll(rowPattern)].filter(([, , , remedy]) => remedy.trim() === '').map(([, code]) => code)
if (bare.length > 0) {
  console.error(`docs/errors.md says no remedy for ${bare.join(', ')}`)
  process.exit(1)
}
