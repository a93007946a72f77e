/** Runs benchmarks/peers/hf.py where there is a python3 (or QN_PYTHON) with torch and transformers. */
import { spawn, spawnSync } from 'node:child_process'
import { createInterface } from 'node:readline'

export interface PeerLine {
  id: string
  value?: number
  error?: string
  [key: string]: unknown
}

const python = process.env['QN_PYTHON'] ?? 'python3'

/** Why the peer cannot be measured; empty when it can. */
export function peerObstacle(): string {
  const find = "import importlib.util as u; print(all(u.find_spec(n) for n in ('torch', 'transformers')))"
  const { stdout, error } = spawnSync(python, ['-c', find], { encoding: 'utf8' })
  if (error) return `${python} cannot be run`
  return stdout.trim() === 'True' ? '' : `${python} has no torch and transformers`
}

/** What it printed, by id; each line is shown as it comes. */
export async function runPeer(options: readonly string[]): Promise<Map<string, PeerLine>> {
  const lines = new Map<string, PeerLine>()
  const child = spawn(python, ['benchmarks/peers/hf.py', ...options], { stdio: ['ignore', 'pipe', 'inherit'] })
  const closed = new Promise<number | null>((resolve) => child.once('close', resolve))
  for await (const text of createInterface({ input: child.stdout })) {
    if (!text.startsWith('{')) continue
    const line = JSON.parse(text) as PeerLine
    lines.set(line.id, line)
    console.log(text)
  }
  const code = await closed
  if (code !== 0) console.log(`hf.py ended with ${code}`)
  return lines
}
