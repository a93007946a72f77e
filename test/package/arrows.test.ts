import { execFileSync } from 'node:child_process'
import { resolve } from 'node:path'

const script = resolve(__dirname, '../../scripts/check-arrows.mjs')

/** Runs one of the checker's functions on a made-up file, in a child because the script is an ES module. */
function problems(fn: string, file: string, text: string): string[] {
  const code = `import { ${fn} } from ${JSON.stringify(script)}; console.log(JSON.stringify(${fn}(${JSON.stringify(file)}, ${JSON.stringify(text)})))`
  return JSON.parse(execFileSync('node', ['--input-type=module', '-e', code], { encoding: 'utf8' })) as string[]
}

describe('check-arrows', () => {
  it('accepts an arrow that points down', () => {
    expect(problems('checkCpp', 'csrc/model/x.cpp', '#include "ops/linear.h"\n')).toEqual([])
    expect(problems('checkTs', 'lib/chat/x.ts', "import { a } from '../model/y'\n")).toEqual([])
  })

  it('bites on an include that points up', () => {
    expect(problems('checkCpp', 'csrc/ops/x.cpp', '#include "model/model.h"\n')).toHaveLength(1)
  })

  it('bites on <napi.h> outside the binding and <cuda_runtime.h> in a header', () => {
    expect(problems('checkCpp', 'csrc/train/x.cpp', '#include <napi.h>\n')).toHaveLength(1)
    expect(problems('checkCpp', 'csrc/core/x.h', '#include <cuda_runtime.h>\n')).toHaveLength(1)
  })

  it('bites on an import that points up', () => {
    expect(problems('checkTs', 'lib/format/x.ts', "import { a } from '../model/y'\n")).toHaveLength(1)
  })

  it('bites on a file of the library that imports the package by name, as the command does', () => {
    expect(problems('checkTs', 'lib/train/x.ts', "import { a } from 'qwen3-nvfp4'\n")).toHaveLength(1)
    expect(problems('checkTs', 'lib/cli/x.ts', "import { a } from 'qwen3-nvfp4'\n")).toEqual([])
  })

  it.each([
    "import { a } from '../lib/index'",
    "import {\n  a,\n  b,\n} from '../../lib/index'",
    "import '../lib/index'",
    "export * from '../lib/index'",
    "const a = await import('../lib/index')",
    "const { a } = require('../lib/index')",
    "let a: import('../lib/index').A",
  ])('bites on an example that reaches below the package: %j', (line) => {
    expect(problems('checkUser', 'examples/x.ts', `import 'node:fs'\n\n${line}\n`)).toHaveLength(1)
  })

  it('bites on a second place that loads the addon', () => {
    expect(problems('checkTs', 'lib/model/x.ts', "import bindings from 'bindings'\n")).toHaveLength(1)
    expect(problems('checkTs', 'lib/native.ts', "import bindings from 'bindings'\n")).toEqual([])
  })

  it('accepts the text of an import inside a string', () => {
    expect(problems('checkUser', 'test/x.ts', `const text = "import { a } from '../lib/index'"\n`)).toEqual([])
  })
})
