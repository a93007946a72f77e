/** The guard of real processes; test/train/memory-guard.test.ts has its rules. */
import { existsSync, readFileSync } from 'node:fs'
import { runCli, startCli } from '../support/run-cli'

const node = (code: string) => ['--', process.execPath, '-e', code]
const grow = 'const held = []; setInterval(() => held.push(Buffer.alloc(2 ** 25, 1)), 20)'
const quick = ['--poll-secs', '0.05']

/** A process that has ended stays a zombie until its parent takes notice. */
function alive(pid: number): boolean {
  if (!existsSync(`/proc/${pid}/stat`)) return false
  return !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
}

// Host memory of other processes is read from /proc.
const onLinux = existsSync('/proc/self/stat') ? describe : describe.skip
if (onLinux !== describe) console.log('skipped: guard (no /proc)')

onLinux('guard', () => {
  it('ends a program whose memory passes the limit, with code 124, and says the pids', async () => {
    const { code, stderr } = await runCli(['guard', '--host-limit-gb', '0.3', ...quick, ...node(grow)])
    expect(code).toBe(124)
    const [, child] = /^guard: pid \d+, child (\d+); limit host 0\.3 GB; now /m.exec(stderr)!
    expect(stderr).toMatch(/^guard: 0\.\d\d GiB of host memory are resident, over the limit of 0\.30 GiB$/m)
    expect(stderr).toMatch(new RegExp(`^guard: SIGTERM to child ${child} and what it started$`, 'm'))
    expect(stderr).toMatch(/^guard: child ended with code 143; highest readings: host 0\.\d\d GiB$/m)
    expect(alive(Number(child))).toBe(false)
  })

  it('counts and ends what the program started, with SIGKILL when SIGTERM does not do', async () => {
    const stubborn = `process.on('SIGTERM', () => {}); console.log('grandchild ' + process.pid); ${grow}`
    const parent =
      `process.on('SIGTERM', () => {}); require('node:child_process')` +
      `.spawn(process.execPath, ['-e', ${JSON.stringify(stubborn)}], { stdio: 'inherit' })`
    const args = ['guard', '--host-limit-gb', '0.3', '--grace-secs', '0.2', ...quick, ...node(parent)]
    const { code, stdout, stderr } = await runCli(args)
    expect(code).toBe(124)
    expect(stderr).toMatch(/still there after 0\.2 s: SIGKILL\nguard: child ended with code 137/)
    const [, grandchild] = /grandchild (\d+)/.exec(stdout)!
    expect(alive(Number(grandchild))).toBe(false)
  })

  it.each([
    ['its own code', 'process.exit(7)', 7],
    ['0', 'console.log(process.argv.length)', 0],
    ['128 + n after signal n', "process.kill(process.pid, 'SIGKILL')", 137],
  ])('passes on %s', async (_, code, expected) => {
    expect(await runCli(['guard', '--host-limit-gb', '8', ...node(code)])).toMatchObject({ code: expected })
  })

  it('passes signals on, and arguments behind the program as they are', async () => {
    const code =
      "process.on('SIGINT', () => process.exit(5)); console.log(process.argv[1]); setInterval(() => {}, 1000)"
    const cli = startCli(['guard', '--host-limit-gb', '8', process.execPath, '-e', code, '--', '--host-limit-gb'])
    await cli.said(/--host-limit-gb\n/)
    cli.process.kill('SIGINT')
    expect(await cli.ended).toMatchObject({ code: 5 })
  })

  it('writes readings now and then', async () => {
    const args = ['guard', '--host-limit-gb=8', '--log-secs=0.1', ...quick, ...node('setTimeout(() => {}, 700)')]
    const { stderr } = await runCli(args)
    expect(stderr.match(/^guard: child in host memory 0\.\d\d GiB$/gm)!.length).toBeGreaterThan(1)
  })

  it('starts nothing that it cannot guard', async () => {
    const args = ['guard', '--gpu-limit-gb', '1', '--device', 'cuda:99', ...node("console.log('started')")]
    const { code, stdout, stderr } = await runCli(args)
    expect([code, stdout]).toEqual([1, ''])
    expect(stderr).toMatch(/^error: CUDA_UNAVAILABLE: /)
  })

  it('says as a shell does when there is no such program, or none that can be run', async () => {
    const missing = await runCli(['guard', '--host-limit-gb', '1', '--', 'no-such-program'])
    expect([missing.code, missing.stderr]).toEqual([127, expect.stringMatching('cannot run no-such-program')])
    const folder = await runCli(['guard', '--host-limit-gb', '1', '--', __dirname])
    expect([folder.code, folder.stderr]).toEqual([126, expect.stringMatching('EACCES')])
  })
})
