import { execFileSync } from 'node:child_process'
import { resolve } from 'node:path'

test('seconds of mutated directories are read or refused by code, never worse (scripts/fuzz-checkpoint.mjs for more)', () => {
  const script = resolve(__dirname, '../../scripts/fuzz-checkpoint.mjs')
  const output = execFileSync(process.execPath, [script, '3', '20261121'], { encoding: 'utf8' })
  const [, cases, valid] = /^checkpoints: (\d+) cases of seed 20261121: (\d+) still valid/.exec(output)!
  expect(Number(valid)).toBeGreaterThan(0)
  expect(Number(cases)).toBeGreaterThan(Number(valid))
})
