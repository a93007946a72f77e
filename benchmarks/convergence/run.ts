/**
 * Our trainer beside PyTorch: the same initial weights, batches and rates in every arm of runs.ts, several processes a GPU.
 *
 *   npm run bench:convergence -- [--plan full|check] [--size 25m|check|tiny] [--gpus 0,1] [--slots 4]
 *     [--seeds 1,2,3] [--seconds 480] [--out FOLDER] [--device cuda:0] [--python python3]
 *
 * Needs python3 with torch and transformers; text and weights are made in a temporary folder (prepare.py). OUT gets results.jsonl,
 * a line every 100 steps of every run, and tables.md. A run that fails is reported and the others go on; no run starts that would
 * not end within --seconds. `--size tiny --plan check --device cpu --slots 1` tries it out without a GPU.
 */
import { spawn, spawnSync } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { plans, type Run, sizes } from './runs'
import { type Line, tables } from './tables'

const { values } = parseArgs({
  options: {
    plan: { type: 'string', default: 'full' },
    size: { type: 'string', default: '25m' },
    gpus: { type: 'string' },
    slots: { type: 'string', default: '4' },
    seeds: { type: 'string', default: '1,2,3' },
    seconds: { type: 'string', default: '480' },
    out: { type: 'string', default: 'build/convergence' },
    device: { type: 'string', default: 'cuda:0' },
    python: { type: 'string', default: process.env['QN_PYTHON'] ?? 'python3' },
  },
})
const began = performance.now()
const elapsed = (): number => (performance.now() - began) / 1000
const deadline = Number(values.seconds)
const plan = plans[values.plan]
const size = sizes[values.size]
if (!plan) throw new RangeError(`Expected --plan of ${Object.keys(plans)} but received ${values.plan}`)
if (!size) throw new RangeError(`Expected --size of ${Object.keys(sizes)} but received ${values.size}`)

function visibleGpus(): string[] {
  if (values.gpus) return values.gpus.split(',')
  if (values.device === 'cpu') return ['']
  const { stdout } = spawnSync('nvidia-smi', ['-L'], { encoding: 'utf8' })
  return [...(stdout ?? '').matchAll(/^GPU (\d+):/gm)].map(([, index]) => index!)
}

const folder = mkdtempSync(join(tmpdir(), 'convergence-'))
const lines: Line[] = []

function report(run: Run, line: object): void {
  const { id, arm, program, task, lr, seed } = run
  const full = { id, arm, program, task, lr, seed, at: Math.round(elapsed()), ...line } as Line
  lines.push(full)
  appendFileSync(join(values.out, 'results.jsonl'), `${JSON.stringify(full)}\n`)
  if (full.final || full.error) {
    const shown = full.error ?? `loss ${full.loss} held out ${full.heldOut} first ${full.first} ${full.msPerStep} ms`
    console.log(`${full.at} s ${id}: ${shown}`)
  }
}

/** Resolves when the process has ended; what it prints is reported. */
async function execute(run: Run, gpu: string): Promise<void> {
  const [command, first] =
    run.program === 'peer'
      ? [values.python, ['benchmarks/convergence/peer.py']]
      : [process.execPath, [...process.execArgv, 'benchmarks/convergence/ours.ts']]
  const child = spawn(command, [...first, folder, values.device, JSON.stringify(run)], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, CUDA_VISIBLE_DEVICES: gpu, OMP_NUM_THREADS: '2', TRANSFORMERS_VERBOSITY: 'error' },
    timeout: Math.max(1, Math.round(1000 * (deadline - elapsed()))),
    killSignal: 'SIGKILL',
  })
  let noise = ''
  child.stderr.on('data', (data: Buffer) => (noise = (noise + data).slice(-600)))
  const closed = once(child, 'close') as Promise<[number | null]>
  let ended = false
  for await (const text of createInterface({ input: child.stdout })) {
    if (!text.startsWith('{')) continue
    const line = JSON.parse(text) as Line
    ended ||= Boolean(line.final ?? line.error)
    report(run, line)
  }
  const [code] = await closed
  if (!ended) report(run, { error: `ended with ${code}: ${noise.trim()}` })
}

/** As many runs at once as there are slots; a run waits for the one that makes its first weights. */
async function executeAll(runs: readonly Run[], gpus: readonly string[]): Promise<void> {
  const pending = [...runs]
  const making = new Set(runs.flatMap(({ save }) => save ?? []))
  const longest = new Map<string, number>()
  const changed = new EventEmitter().setMaxListeners(0)
  const fits = ({ program, task }: Run): boolean =>
    elapsed() + (longest.get(`${program} ${task}`) ?? 0) * 1.1 < deadline
  async function work(gpu: string): Promise<void> {
    while (pending.length > 0) {
      const index = pending.findIndex((run) => !making.has(run.from) && fits(run))
      if (index < 0) {
        if (!pending.some((run) => making.has(run.from))) return
        await once(changed, 'end')
        continue
      }
      const [run] = pending.splice(index, 1) as [Run]
      const start = elapsed()
      await execute(run, gpu)
      const kind = `${run.program} ${run.task}`
      longest.set(kind, Math.max(longest.get(kind) ?? 0, elapsed() - start))
      if (run.save) making.delete(run.save)
      changed.emit('end')
    }
  }
  const slots = Array.from({ length: Number(values.slots) }, () => gpus).flat()
  await Promise.all(slots.map(work))
  if (pending.length > 0) console.log(`No time was left for ${pending.map(({ id }) => id).join(', ')}`)
}

async function main(): Promise<void> {
  const gpus = visibleGpus()
  if (gpus.length === 0) throw new Error('nvidia-smi shows no GPU: name one with --gpus, or use --device cpu')
  mkdirSync(values.out, { recursive: true })
  writeFileSync(join(values.out, 'results.jsonl'), '')
  const made = values.size === 'tiny' ? 'tiny' : '25m'
  const args = ['benchmarks/convergence/prepare.py', folder, '--size', made, '--seeds', values.seeds]
  const prepared = spawnSync(values.python, args, { stdio: ['ignore', 'inherit', 'inherit'] })
  if (prepared.status !== 0) throw new Error(`prepare.py ended with ${prepared.status}`)
  console.log(`${Math.round(elapsed())} s prepared; ${gpus.length} x ${values.slots} processes`)
  const seeds = values.seeds.split(',').map(Number)
  await executeAll(
    plan!(size!).filter(({ seed }) => seeds.includes(seed)),
    gpus,
  )
  const text = tables(lines)
  writeFileSync(join(values.out, 'tables.md'), text)
  console.log(`${text}\n${Math.round(elapsed())} s in all`)
}

main()
  .catch((error: unknown) => {
    console.error(error instanceof Error ? error.message : error)
    process.exitCode = 1
  })
  .finally(() => rmSync(folder, { recursive: true, force: true }))
