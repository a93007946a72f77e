/** The only file that loads the addon. */
import bindings from 'bindings'
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { NativeAddon } from '../types/native'
import { Qwen3Nvfp4Error } from './errors'

let addon: NativeAddon | undefined

/** The addon, loaded at the first call so that tools that need only TypeScript never load it. */
export function native(): NativeAddon {
  return (addon ??= load())
}

/** QN_ADDON_PATH names a build other than that of `npm install`, such as the one with sanitizers; nothing else is tried. */
function load(): NativeAddon {
  const root = packageRoot()
  const chosen = process.env['QN_ADDON_PATH']
  try {
    if (chosen) return createRequire(join(root, 'package.json'))(resolve(chosen)) as NativeAddon
    return bindings({ bindings: 'qwen3_nvfp4', module_root: root }) as NativeAddon
  } catch (cause) {
    // `bindings` lists the paths that do not exist; a file that exists and does not load throws dlopen's own message.
    const tries = (cause as { tries?: string[] }).tries
    const reason = tries ? `Tried:\n  ${tries.join('\n  ')}` : String((cause as Error).message ?? cause)
    throw new Qwen3Nvfp4Error(
      'ADDON_LOAD_FAILED',
      `Cannot load the native addon of qwen3-nvfp4 for ${process.platform}-${process.arch}, Node ${process.version}.\n` +
        `${reason}\n` +
        `Build it with "npm rebuild qwen3-nvfp4" (in a clone: "npx node-gyp rebuild"); ` +
        'that needs a C++20 compiler, make and Python 3, and install scripts must be allowed.',
      { cause },
    )
  }
}

/** The directory with our package.json: above dist/ in a release, above lib/ when run from source. */
function packageRoot(): string {
  const start = dirname(fileURLToPath(import.meta.url))
  for (let folder = start; ; folder = dirname(folder)) {
    const manifest = join(folder, 'package.json')
    if (existsSync(manifest) && JSON.parse(readFileSync(manifest, 'utf8')).name === 'qwen3-nvfp4') return folder
    if (dirname(folder) === folder) return start
  }
}
