// Keeps the help texts in docs/cli.md in step with the built command (npm run build first). --check changes nothing and
// fails when the document is out of step.
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { resolve } from 'node:path'

const root = resolve(import.meta.dirname, '..')
const document = resolve(root, 'docs/cli.md')

const help = (...args) =>
  execFileSync(process.execPath, [resolve(root, 'dist/cli.js'), ...args, '--help'], { encoding: 'utf8' })

const commands = [...help().matchAll(/^ {2}([a-z][a-z-]+) \[/gm)]
  .map(([, name]) => name)
  .filter((name) => name !== 'help')
const text = readFileSync(document, 'utf8')
const problems = []
let wanted = text
for (const name of commands) {
  const block = new RegExp(`(\\n## ${name}\\n(?:(?!\\n## )[^])*?\\n\`\`\`text\\n)(?:(?!\`\`\`)[^])*(\`\`\`\\n)`)
  if (!block.test(text)) problems.push(`docs/cli.md has no section "## ${name}" with a text block`)
  wanted = wanted.replace(block, (_, before, after) => before + help(name) + after)
}
if (!process.argv.includes('--check')) writeFileSync(document, wanted)
else if (wanted !== text) problems.push('docs/cli.md is out of step with the command: run "node scripts/cli-docs.mjs"')
for (const problem of problems) console.error(problem)
process.exit(problems.length > 0 ? 1 : 0)
