/** From a `.dat` in page cache to the first new token, in a running process. */
import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Qwen3Nvfp4Model } from 'qwen3-nvfp4'
import { type Bench, median, now, tokenIds } from './measure'
import { loadLimit } from './workloads'

export const measureLoad = (bench: Bench): Promise<void> => bench.attempt('load', () => measureFile(bench))

async function measureFile(bench: Bench): Promise<void> {
  const { model, workload, machine, device } = bench
  const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'qn-bench-'))
  try {
    const path = join(folder, 'model.dat')
    const started = now()
    await model.saveDat(path)
    const saving = now() - started
    const prompt = tokenIds(32, workload.config.vocabSize)
    const loads: number[] = []
    const firsts: number[] = []
    for (let i = 0; i < (bench.quick ? 2 : 4); i++) {
      const start = now()
      const loaded = await Qwen3Nvfp4Model.load(path, { device })
      loads.push(now() - start)
      for await (const _token of loaded.generate(prompt, { maxTokens: 1, stopTokens: [] })) firsts.push(now() - start)
      await loaded.dispose()
    }
    // The first load of a process warms nothing that a later one would find: it is left out all the same.
    const first = 1000 * median(firsts.slice(1))
    bench.add({
      what: '.dat in page cache → first token',
      ours: first,
      unit: 'ms',
      limit: 1000 * loadLimit(workload, machine),
      peers: {},
      note:
        `${(statSync(path).size / 1e9).toFixed(2)} GB; loaded after ${(1000 * median(loads.slice(1))).toFixed(0)} ms; ` +
        `first load of the process ${(1000 * firsts[0]!).toFixed(0)} ms; saved in ${saving.toFixed(2)} s`,
    })
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
