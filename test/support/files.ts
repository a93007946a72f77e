/** Folders that vanish after the test file, and the shared data that a fresh clone does not have. */
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'

const folders: string[] = []

afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true })
})

export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'qn-test-'))
  folders.push(folder)
  return folder
}

/** Names in a folder; what a failed writer left behind would show here. */
export const listFolder = (folder: string): string[] => readdirSync(folder).sort()

/** What a promise rejects with; of one that resolves, an error that says so. */
export async function failure(work: Promise<unknown>): Promise<{ code: string; message: string }> {
  return (await work.then(
    () => ({ code: 'none', message: 'no error' }),
    (error: unknown) => error,
  )) as { code: string; message: string }
}

const shared = resolve(__dirname, '../../../shared')

export const sharedPath = (...parts: string[]): string => join(shared, 'data', ...parts)

/** `describe` where ../shared has `parts`, else a skip that says why. */
export function describeWithShared(name: string, parts: string[], body: () => void): void {
  if (existsSync(sharedPath(...parts))) {
    describe(name, body)
    return
  }
  console.log(`skipped: ${name} (no ../shared/data/${parts.join('/')})`)
  describe.skip(name, body)
}
