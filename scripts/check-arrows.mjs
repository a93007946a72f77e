// Fails when a file includes or imports against the arrows of CONTRIBUTING.md ("a <- b": b may use a).
//   C++: core <- format <- ops <- model <- train <- binding;  <napi.h> only in binding;  <cuda_runtime.h> never in a header
//   TS:  types <- lib/{errors,check,native} <- lib/{ops,format} <- lib/model <- lib/chat <- lib/{train,convert} <- lib/index <- lib/cli
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'

const CPP_LAYERS = ['core', 'format', 'ops', 'model', 'train', 'binding']
const TS_LAYERS = [
  ['types'],
  ['lib'],
  ['lib/ops', 'lib/format'],
  ['lib/model'],
  ['lib/chat'],
  ['lib/train', 'lib/convert'],
  ['lib/cli'],
]
const ENTRIES = ['lib/index.ts', 'lib/dat.ts'] // tables of contents: may import from anywhere

const files = (root, pattern) =>
  existsSync(root)
    ? readdirSync(root, { recursive: true })
        .filter((name) => pattern.test(name))
        .map((name) => join(root, name))
    : []

/** What a file imports: statements at the start of a line, `import()` and `require()`. Text inside strings is no import. */
const imported = (text) =>
  [
    /^\s*(?:import|export)\b[^'"`;]*?\bfrom\s+['"]([^'"\n]+)['"]/gm,
    /^\s*import\s+['"]([^'"\n]+)['"]/gm,
    /^[^'"`\n]*?\b(?:import|require)\s*\(\s*['"]([^'"\n]+)['"]\s*\)/gm,
  ].flatMap((pattern) => [...text.matchAll(pattern)].map(([, path]) => path))

export function checkCpp(file, text) {
  const problems = []
  const layer = CPP_LAYERS.indexOf(file.split('/')[1])
  for (const [, path] of text.matchAll(/^\s*#include ["<]([^">]+)[">]/gm)) {
    const other = CPP_LAYERS.indexOf(path.split('/')[0])
    if (other > layer) problems.push(`${file}: ${CPP_LAYERS[layer]} must not include ${path}`)
    if (path.endsWith('.cu')) problems.push(`${file}: a .cu file is included by nobody (${path})`)
    if (path === 'napi.h' && CPP_LAYERS[layer] !== 'binding')
      problems.push(`${file}: only binding may include <napi.h>`)
    if (path === 'cuda_runtime.h' && !/\.cu$|^csrc\/core\/.*\.cpp$/.test(file)) {
      problems.push(`${file}: <cuda_runtime.h> belongs in .cu files and core/*.cpp only`)
    }
  }
  return problems
}

const tsLayer = (file) => TS_LAYERS.findIndex((dirs) => dirs.includes(dirname(file)))

export function checkTs(file, text) {
  if (ENTRIES.includes(file)) return []
  const problems = []
  for (const path of imported(text).filter((path) => path.startsWith('.'))) {
    const target = `${normalize(join(dirname(file), path)).replace(/\.(js|ts)$/, '')}.ts`
    if (ENTRIES.includes(target)) problems.push(`${file}: must not import an entry (${target})`)
    if (tsLayer(target) > tsLayer(file)) problems.push(`${file}: must not import ${target}, which lies above it`)
  }
  if (tsLayer(file) < TS_LAYERS.length - 1 && imported(text).some((path) => path.startsWith('qwen3-nvfp4')))
    problems.push(`${file}: only lib/cli imports the package by name`)
  if (file !== 'lib/native.ts' && imported(text).includes('bindings'))
    problems.push(`${file}: only lib/native.ts loads the addon`)
  return problems
}

export function checkUser(file, text) {
  const below = imported(text).some((path) => /^[./]+\/lib\//.test(path))
  return below ? [`${file}: imports lib/ instead of 'qwen3-nvfp4'`] : []
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const problems = [
    ...files('csrc', /\.(h|cpp|cu)$/).flatMap((f) => checkCpp(f, readFileSync(f, 'utf8'))),
    ...['lib', 'types'].flatMap((d) => files(d, /\.ts$/)).flatMap((f) => checkTs(f, readFileSync(f, 'utf8'))),
    ...['examples', 'benchmarks', 'test']
      .flatMap((d) => files(d, /\.ts$/))
      .flatMap((f) => checkUser(f, readFileSync(f, 'utf8'))),
  ]
  for (const problem of problems) console.error(problem)
  process.exit(problems.length > 0 ? 1 : 0)
}
