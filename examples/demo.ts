/**
 * The whole of the library in one story, on the CPU: a tiny Qwen3 is trained from random 4-bit weights, saved, loaded in
 * a new process, given an identity, saved and loaded again, and talked to. Each stage is a process and a file of demo/.
 *
 *   npm run demo -- [--seed 1] [--threads N] [--out folder]
 */
import { fork } from 'node:child_process'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { chat } from './demo/chat'
import { pretrain } from './demo/pretrain'
import { probeAfter, probeBefore } from './demo/probe'
import type { StageOptions } from './demo/stage'
import { tune } from './demo/tune'

const stages: Record<string, { title: string; run: (options: StageOptions) => Promise<void> }> = {
  pretrain: { title: 'Train a tiny Qwen3 from random NVFP4 weights, every state packed', run: pretrain },
  before: { title: 'Load base.dat in a new process and ask', run: probeBefore },
  tune: { title: 'Tune an identity in, with replay', run: tune },
  after: { title: 'Load tuned.dat in a new process and ask again', run: probeAfter },
  chat: { title: 'Chat two turns on one cache, and compare the forward paths', run: chat },
}

const usage = 'usage: npm run demo -- [--seed 1] [--threads N] [--out folder]'

function readArguments() {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string', default: '1' },
      threads: { type: 'string' },
      out: { type: 'string' },
      stage: { type: 'string' },
    },
  })
  const seed = Number(values.seed)
  const threads = values.threads === undefined ? undefined : Number(values.threads)
  if (!Number.isSafeInteger(seed) || seed < 0 || Number.isNaN(threads)) throw new Error(usage)
  return { seed, threads, out: values.out, stage: values.stage }
}

/** Runs one stage in a process of its own. */
function startStage(name: string, args: readonly string[]): Promise<void> {
  return new Promise((done, failed) => {
    const child = fork(fileURLToPath(import.meta.url), ['--stage', name, ...args])
    child.once('error', failed)
    child.once('exit', (code) => (code === 0 ? done() : failed(new Error(`stage ${name} ended with code ${code}`))))
  })
}

async function main(): Promise<void> {
  const { seed, threads, out, stage } = readArguments()
  if (stage !== undefined) {
    await stages[stage]!.run({ folder: out!, seed, threads })
    return
  }
  const begin = performance.now()
  const folder = out === undefined ? await mkdtemp(join(tmpdir(), 'qwen3-nvfp4-demo-')) : resolve(out)
  await mkdir(folder, { recursive: true })
  try {
    const args = ['--out', folder, '--seed', String(seed), ...(threads ? ['--threads', String(threads)] : [])]
    for (const [i, [name, { title }]] of Object.entries(stages).entries()) {
      console.log(`\n${i + 1}. ${title}`)
      await startStage(name, args)
    }
  } finally {
    if (out === undefined) await rm(folder, { recursive: true, force: true })
  }
  const kept = out === undefined ? 'everything it wrote is gone again; keep it with --out' : `files are in ${folder}`
  console.log(`\nAll probes hold, after ${((performance.now() - begin) / 1000).toFixed(0)} s; ${kept}.`)
}

main().catch((error: Error) => {
  console.error(error.message)
  process.exitCode = 1
})
