import { execFileSync } from 'node:child_process'
import { resolve } from 'node:path'

test('seconds of mutated GGUF files are read or refused by code, never worse (scripts/fuzz-gguf.mjs for more)', () => {
  const script = resolve(__dirname, '../../scripts/fuzz-gguf.mjs')
  const output = execFileSync(process.execPath, [script, '3', '20261121'], { encoding: 'utf8' })
  const [, cases, valid] = /^gguf: (\d+) cases of seed 20261121: (\d+) still valid/.exec(output)!
  expect(Number(valid)).toBeGreaterThan(0)
  expect(Number(cases)).toBeGreaterThan(Number(valid))
})
