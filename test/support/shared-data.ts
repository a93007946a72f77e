/** Files of ../shared that some tests compare with; a fresh clone has none, and those tests skip with the reason. */
import { existsSync } from 'node:fs'
import { resolve } from 'node:path'

const root = resolve(__dirname, '../../../shared')

export const sharedPath = (path: string): string => resolve(root, path)

/** `describe`, or a skipped one that prints why. */
export function describeWithShared(path: string, name: string, body: () => void): void {
  if (existsSync(sharedPath(path))) return describe(name, body)
  describe.skip(`${name} (../shared/${path} is absent)`, body)
}
