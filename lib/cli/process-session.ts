/** A child and all that it started, as Linux counts them: the processes of the session that it leads. */
import { readdir, readFile } from 'node:fs/promises'

export interface Member {
  pid: number
  group: number
  /** Resident in host memory; pages that processes share count for each. */
  bytes: number
}

/** Undefined where there is no /proc. */
export async function sessionMembers(leader: number): Promise<Member[] | undefined> {
  const names = await readdir('/proc').catch(() => undefined)
  if (!names?.includes('self')) return undefined
  const members = await Promise.all(names.filter((name) => /^\d+$/.test(name)).map((pid) => readMember(pid, leader)))
  return members.filter((member) => member !== undefined)
}

/** Undefined for a process of another session, or one that has ended meanwhile. */
async function readMember(pid: string, leader: number): Promise<Member | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '')
  // The name in parentheses may hold anything; behind it come state, parent, group and session.
  const [, , group, session] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  if (Number(session) !== leader) return undefined
  const status = await readFile(`/proc/${pid}/status`, 'latin1').catch(() => '')
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0
  return { pid: Number(pid), group: Number(group), bytes: Number(kib) * 1024 }
}

/** Sends a signal to the leader's process group and to members that have left it. */
export async function signalSession(leader: number, signal: NodeJS.Signals): Promise<void> {
  send(-leader, signal)
  for (const { pid, group } of (await sessionMembers(leader)) ?? []) if (group !== leader) send(pid, signal)
}

/** One that has ended needs no signal. */
function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
