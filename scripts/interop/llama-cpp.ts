/**
 * Loads GGUF files that we write in llama.cpp, through node-llama-cpp and its prebuilt CPU binary, and compares: greedy
 * ids and logits of a small random model in every form, and the ids of the tokenizer.
 *   npm run test:interop (npm run build first; about 85 MB are installed into .qn-interop once)
 *
 * llama.cpp multiplies F16 weights with activations rounded to fp16, and Q8_0 and NVFP4 weights with activations rounded
 * to int8 in blocks of 32; ours are fp32. So F16 must give the same ids, and NVFP4 may differ as much as Q8_0 does.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { exportCheckpoint, Qwen3Nvfp4Model, Tokenizer, type FileStorage, type Qwen3Config } from 'qwen3-nvfp4'
import { byteTokenizer } from './byte-tokenizer'
import { smallConfig } from './small-config'

const version = '3.22.1'
const root = resolve(import.meta.dirname, '../..')
const installed = join(root, '.qn-interop')
const shared = join(root, '..', 'shared', 'data')
const greedyTokens = 64

const config: Qwen3Config = { ...smallConfig, vocabSize: 320, eosTokenIds: [258] }

/** The part of node-llama-cpp that is used; its own types are not installed with the project. */
interface LlamaCpp {
  getLlama(options: object): Promise<{
    llamaCppRelease: { release: string }
    loadModel(options: object): Promise<LlamaModel>
    dispose(): Promise<void>
  }>
}
interface LlamaModel {
  tokenize(text: string, specialTokens: boolean, options?: 'trimLeadingSpace'): number[]
  createContext(options: object): Promise<{ getSequence(): LlamaSequence; dispose(): Promise<void> }>
  dispose(): Promise<void>
}
interface LlamaSequence {
  controlledEvaluate(
    input: (number | [number, object])[],
  ): Promise<({ next: { logits?: Map<number, number> } } | undefined)[]>
}

/** Its own binaries for GPUs are hundreds of megabytes and optional: only that for the CPU is taken. */
async function loadLlamaCpp(): Promise<LlamaCpp> {
  const entry = join(installed, 'node_modules', 'node-llama-cpp', 'dist', 'index.js')
  if (!existsSync(entry)) {
    const { platform, arch } = process
    const binary = platform === 'darwin' ? (arch === 'arm64' ? 'mac-arm64-metal' : 'mac-x64') : `linux-${arch}`
    mkdirSync(installed, { recursive: true })
    writeFileSync(join(installed, 'package.json'), '{"private": true}')
    const packages = [`node-llama-cpp@${version}`, `@node-llama-cpp/${binary}@${version}`]
    const flags = ['--ignore-scripts', '--omit=optional', '--no-audit', '--no-fund', '--loglevel=error']
    execFileSync('npm', ['install', ...flags, ...packages], { cwd: installed, stdio: 'inherit' })
  }
  return (await import(pathToFileURL(entry).href)) as LlamaCpp
}

/** Logits behind every id, one sequence. */
async function theirLogits(model: LlamaModel, ids: readonly number[]): Promise<Float32Array> {
  const context = await model.createContext({ contextSize: 256, batchSize: 256, threads: 2, flashAttention: false })
  const rows = await context.getSequence().controlledEvaluate(ids.map((id) => [id, { generateNext: { logits: true } }]))
  const logits = new Float32Array(ids.length * config.vocabSize)
  for (const [i, row] of rows.entries()) {
    for (const [id, logit] of row!.next.logits!) logits[i * config.vocabSize + id] = logit
  }
  await context.dispose()
  return logits
}

const largest = (row: Float32Array) => row.reduce((best, value, i) => (value > row[best]! ? i : best), 0)

async function theirGreedy(model: LlamaModel, prompt: readonly number[]): Promise<number[]> {
  const context = await model.createContext({ contextSize: 256, batchSize: 256, threads: 2, flashAttention: false })
  const sequence = context.getSequence()
  const made: number[] = []
  for (let input = prompt; made.length < greedyTokens; input = made.slice(-1)) {
    const asked = input.map((id, i) =>
      i < input.length - 1 ? id : ([id, { generateNext: { logits: true } }] as [number, object]),
    )
    const rows = await sequence.controlledEvaluate(asked)
    const row = new Float32Array(config.vocabSize)
    for (const [id, logit] of rows[input.length - 1]!.next.logits!) row[id] = logit
    made.push(largest(row))
  }
  await context.dispose()
  return made
}

async function ourGreedy(model: Qwen3Nvfp4Model, prompt: readonly number[]): Promise<number[]> {
  const made: number[] = []
  const options = { maxTokens: greedyTokens, temperature: 0, stopTokens: [] }
  for await (const { id } of model.generate(prompt, options)) made.push(id)
  return made
}

function relativeRms(ours: Float32Array, theirs: Float32Array): number {
  let [errors, squares] = [0, 0]
  for (const [i, value] of ours.entries()) {
    errors += (theirs[i]! - value) ** 2
    squares += value ** 2
  }
  return Math.sqrt(errors / squares)
}

interface Row {
  form: FileStorage
  error: number
  sameTop: number
  sameGreedy: number
}

async function compare(
  llama: Awaited<ReturnType<LlamaCpp['getLlama']>>,
  folder: string,
  form: FileStorage,
): Promise<Row> {
  const path = join(folder, `${form}.gguf`)
  await using source = await Qwen3Nvfp4Model.initialize(config, {
    seed: 11,
    stddev: 0.08,
    weights: form === 'nvfp4' ? 'nvfp4' : 'fp32',
  })
  await exportCheckpoint(source, path, { format: 'gguf', weights: form, modelDir: folder })
  await using model = await Qwen3Nvfp4Model.load(path, { weights: form === 'nvfp4' ? undefined : 'fp32' })
  const theirs = await llama.loadModel({ modelPath: path, gpuLayers: 0 })
  const ids = Array.from({ length: 97 }, (_, i) => (i * 389 + 17) % 256)
  const result = await model.forward(ids, { logits: 'all' })
  const [a, b] = [await result.logits!.toFloat32Array(), await theirLogits(theirs, ids)]
  const row = (logits: Float32Array, i: number) => logits.subarray(i * config.vocabSize, (i + 1) * config.vocabSize)
  const sameTop = ids.filter((_, i) => largest(row(a, i)) === largest(row(b, i))).length / ids.length
  const prompt = ids.slice(0, 16)
  const [one, other] = [await ourGreedy(model, prompt), await theirGreedy(theirs, prompt)]
  const differs = one.findIndex((id, i) => id !== other[i])
  await theirs.dispose()
  return { form, error: relativeRms(a, b), sameTop, sameGreedy: differs < 0 ? one.length : differs }
}

/** The tokenizer of Qwen3 in a GGUF, on the texts of data sets. */
async function compareTokenizers(llama: Awaited<ReturnType<LlamaCpp['getLlama']>>, folder: string): Promise<string[]> {
  const [qwen3, texts] = [join(shared, 'qwen3'), join(shared, 'whoami')]
  if (!existsSync(join(qwen3, 'tokenizer.json')) || !existsSync(texts)) {
    console.log('skipped: the tokenizer (no ../shared/data/qwen3 and whoami)')
    return []
  }
  const small = { ...config, hiddenSize: 64, numHiddenLayers: 1, intermediateSize: 64, vocabSize: 151936 }
  const path = join(folder, 'tokenizer.gguf')
  await using model = await Qwen3Nvfp4Model.initialize({ ...small, tieWordEmbeddings: true, eosTokenIds: [151645] })
  await exportCheckpoint(model, path, { format: 'gguf', modelDir: qwen3 })
  const theirs = await llama.loadModel({ modelPath: path, gpuLayers: 0 })
  const tokenizer = await Tokenizer.fromFile(path)
  const own = await Tokenizer.fromFile(qwen3)
  let [tokens, lines] = [0, 0]
  const different: string[] = []
  for (const name of readdirSync(texts)) {
    for (const line of new Set(readFileSync(join(texts, name), 'utf8').split('\n'))) {
      const [ours, file, theirIds] = [own.encode(line), tokenizer.encode(line), theirs.tokenize(line, true)]
      lines++
      tokens += ours.length
      if (ours.join() !== theirIds.join() || ours.join() !== file.join()) different.push(`${name}: ${line}`)
    }
  }
  await theirs.dispose()
  console.log(
    `tokenizer: ${lines} lines of ${readdirSync(texts).length} files, ${tokens} tokens, ${different.length} lines differ`,
  )
  return different.map((line) => `tokenizer differs on ${line.slice(0, 200)}`)
}

async function main(): Promise<number> {
  const llamaCpp = await loadLlamaCpp()
  const llama = await llamaCpp.getLlama({ gpu: false, build: 'never', logLevel: 'error' })
  console.log(`node-llama-cpp ${version}, llama.cpp ${llama.llamaCppRelease.release}, on the CPU`)
  const folder = mkdtempSync(join(tmpdir(), 'qn-interop-'))
  const failures: string[] = []
  try {
    const { tokenizer, config: tokenizerConfig } = byteTokenizer()
    writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
    writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify(tokenizerConfig))
    const rows = new Map<FileStorage, Row>()
    for (const form of ['fp32', 'fp16', 'bf16', 'q8_0', 'nvfp4'] as const) {
      const row = await compare(llama, folder, form)
      rows.set(form, row)
      const { error, sameTop, sameGreedy } = row
      console.log(
        `${form.padEnd(6)} logits ${(100 * error).toFixed(3)} % RMS apart, most likely token the same in ${(100 * sameTop).toFixed(1)} %, greedy ids the same for ${sameGreedy} of ${greedyTokens}`,
      )
    }
    for (const form of ['fp32', 'fp16'] as const) {
      if (rows.get(form)!.sameGreedy < greedyTokens) failures.push(`greedy ids of ${form} differ`)
    }
    if (rows.get('nvfp4')!.error > 2 * rows.get('q8_0')!.error)
      failures.push('NVFP4 is further apart than int8 explains')
    failures.push(...(await compareTokenizers(llama, folder)))
  } finally {
    await llama.dispose()
    rmSync(folder, { recursive: true, force: true })
  }
  for (const failure of failures) console.error(`failed: ${failure}`)
  return failures.length > 0 ? 1 : 0
}

main().then(
  (code) => process.exit(code),
  (error: unknown) => {
    console.error(error)
    process.exit(1)
  },
)
