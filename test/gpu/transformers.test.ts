/**
 * Our model in dense bf16 weights against Hugging Face transformers on the same checkpoint, which benchmarks/peers/parity.py
 * makes on the spot. Needs a CUDA device and a python3 (or QN_PYTHON) with torch and transformers.
 * QN_PARITY_DEVICE=cpu compares a smaller one on the CPU.
 */
import { spawnSync } from 'node:child_process'
import { resolve } from 'node:path'
import { Qwen3Nvfp4Model, SafetensorsReader } from 'qwen3-nvfp4'
import { temporaryFolder } from '../support/files'
import { ops } from '../support/native-ops'

const device = process.env['QN_PARITY_DEVICE'] ?? 'cuda:0'
const python = process.env['QN_PYTHON'] ?? 'python3'
const probe = ops.probeCuda!() as { devices: number; reason: string }

/** Why nothing can be compared; empty when it can. */
function obstacle(): string {
  if (device !== 'cpu' && probe.devices === 0) return probe.reason
  const find =
    "import importlib.util as u; print(all(u.find_spec(n) for n in ('torch', 'transformers', 'safetensors')))"
  const { stdout, error } = spawnSync(python, ['-c', find], { encoding: 'utf8' })
  if (error) return `${python} cannot be run`
  return stdout.trim() === 'True' ? '' : `${python} has no torch and transformers`
}

const reason = obstacle()
if (reason) console.log(`skipped: parity with transformers (${reason})`)
const suite = reason ? describe.skip : describe

/** A whole tensor; integers stay integers. */
type Values = Float32Array | Int32Array

function relativeError(actual: Float32Array, expected: Float32Array): number {
  let [error, size] = [0, 0]
  expected.forEach((value, i) => {
    error += (actual[i]! - value) ** 2
    size += value ** 2
  })
  return Math.sqrt(error / size)
}

function cosine(a: Float32Array, b: Float32Array): number {
  let [ab, aa, bb] = [0, 0, 0]
  a.forEach((value, i) => {
    ab += value * b[i]!
    aa += value * value
    bb += b[i]! * b[i]!
  })
  return ab / Math.sqrt(aa * bb)
}

/** The id of the largest logit of every row of V. */
function likeliest(logits: Float32Array, V: number): number[] {
  return Array.from({ length: logits.length / V }, (_, t) => {
    const row = logits.subarray(t * V, (t + 1) * V)
    return row.indexOf(row.reduce((max, value) => Math.max(max, value), -Infinity))
  })
}

suite('parity with transformers', () => {
  let model: Qwen3Nvfp4Model
  let reference: SafetensorsReader
  const read = async (key: string) => (await reference.read(key)) as Values
  const floats = async (key: string) => (await read(key)) as Float32Array

  beforeAll(async () => {
    const folder = temporaryFolder()
    const where = device === 'cpu' ? ['--config', 'small', '--device', 'cpu'] : []
    const script = resolve(__dirname, '../../benchmarks/peers/parity.py')
    const made = spawnSync(python, [script, folder, ...where], { encoding: 'utf8' })
    if (made.status !== 0) throw new Error(`parity.py failed: ${made.stderr}`)
    console.log(`transformers' own bf16 against its fp32: ${made.stdout.trim()}`)
    reference = await SafetensorsReader.open(resolve(folder, 'reference.safetensors'))
    model = await Qwen3Nvfp4Model.load(folder, { device, weights: 'bf16' })
  }, 240_000)
  afterAll(async () => {
    await reference?.close()
    await model?.dispose()
  })

  it('has its logits within one percent and its likeliest token at 99 positions of 100', async () => {
    const ids = Array.from(await read('input_ids'))
    const result = await model.forward(ids, { logits: 'all' })
    const [logits, expected] = [await result.logits.toFloat32Array(), await floats('logits')]
    const V = model.config.vocabSize
    const [ours, theirs] = [likeliest(logits, V), likeliest(expected, V)]
    const same = ours.filter((id, t) => id === theirs[t]).length / theirs.length
    const inBf16 = relativeError(logits, await floats('logits_bf16'))
    const error = relativeError(logits, expected)
    console.log(`logits: relative error ${error} to fp32, ${inBf16} to bf16; the same likeliest token at ${same}`)
    expect(error).toBeLessThanOrEqual(1e-2)
    expect(same).toBeGreaterThanOrEqual(0.99)
  })

  it('has its loss, and every gradient with a cosine of at least 0.999', async () => {
    const [ids, labels] = [Array.from(await read('input_ids')), Array.from(await read('labels'))]
    const loss = await model.loss(ids, labels)
    const [expected] = await floats('loss')
    expect(Math.abs(loss.value - expected!)).toBeLessThanOrEqual(1e-2 * expected!)
    await loss.backward()
    const cosines: [name: string, cosine: number][] = []
    for (const parameter of model.parameters()) {
      const gradient = await parameter.grad()
      cosines.push([parameter.name, cosine(gradient!, await floats(`grad.${parameter.name}`))])
    }
    cosines.sort((a, b) => a[1] - b[1])
    console.log(`gradients: least cosines ${cosines.slice(0, 3).map(([name, value]) => `${name} ${value}`)}`)
    expect(cosines).toHaveLength(reference.entries.filter(({ key }) => key.startsWith('grad.')).length)
    expect(cosines.filter(([, value]) => !(value >= 0.999))).toEqual([])
  })
})
