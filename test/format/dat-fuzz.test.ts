import { execFileSync } from 'node:child_process'
import { resolve } from 'node:path'

test('a second of mutated .dat files is read or refused by code, never worse (scripts/fuzz-dat.mjs for more)', () => {
  const script = resolve(__dirname, '../../scripts/fuzz-dat.mjs')
  const output = execFileSync(process.execPath, [script, '1', '20260226'], { encoding: 'utf8' })
  const [, cases, valid] = /^(\d+) cases of seed 20260226: (\d+) still valid/.exec(output)!
  expect(Number(valid)).toBeGreaterThan(0)
  expect(Number(cases)).toBeGreaterThan(Number(valid))
})
