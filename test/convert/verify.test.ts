import { join } from 'node:path'
import { convert, Qwen3Nvfp4Model, SafetensorsReader, verify, writeDat, writeSafetensors } from 'qwen3-nvfp4'
import { readFileSync, writeFileSync } from 'node:fs'
import { packedTensors, tinyConfig, writeModel } from '../support/checkpoints'
import { bf16Bits, denseTensors, writeDense } from '../support/dense-directory'
import { temporaryFolder } from '../support/files'

const quiet = { onWarning: () => {} }
const q = 'model.layers.0.self_attn.q_proj.weight'

test('verify names a parameter of which one byte differs, by bits and by value', async () => {
  const folder = temporaryFolder()
  const path = await writeModel(folder, packedTensors())
  const tensors = packedTensors()
  const { data } = tensors.get(`${q}.qdata`)!
  const codes = data as Uint8Array
  codes[7] = codes[7]! ^ 0x01
  const other = join(folder, 'other.dat')
  await writeDat(other, tensors)
  expect(await verify(path, path, { by: 'bits' })).toEqual({ equal: true, compared: 25, differences: [] })
  expect(await verify(path, other, { by: 'bits' })).toMatchObject({
    equal: false,
    differences: [{ name: q, kind: 'bits', message: 'codes differ from byte 7 on' }],
  })
  const { differences } = await verify(path, other)
  expect(differences).toMatchObject([{ name: q, kind: 'values', different: 1 }])
  const { largestDifference } = differences[0]!
  expect(await verify(path, other, { tolerance: largestDifference })).toMatchObject({ equal: true })
  expect(await verify(path, other, { tolerance: largestDifference! * 0.99 })).toMatchObject({ equal: false })
})

test('verify compares formats: dense and packed by value, and says by bits that they are stored differently', async () => {
  const folder = temporaryFolder()
  const path = await writeModel(folder, packedTensors({ rawType: 15, globalScale: 0.25 }))
  const dense = join(folder, 'dense')
  await convert(path, dense, { format: 'hf-bf16', ...quiet })
  expect(await verify(path, dense)).toMatchObject({ equal: true, compared: 25 })
  const { differences } = await verify(path, dense, { by: 'bits' })
  expect(differences).toHaveLength(15)
  expect(differences[0]).toMatchObject({
    kind: 'storage',
    message: 'codes u8, scales e4m3 in one, values bf16 in the other',
  })
})

test('verify sees another global scale under equal codes', async () => {
  const folder = temporaryFolder()
  const a = await writeModel(folder, packedTensors({ globalScale: 0.25 }))
  const b = join(folder, 'b.dat')
  await writeDat(b, packedTensors({ globalScale: 0.5 }))
  const byBits = await verify(a, b, { by: 'bits' })
  expect(byBits.differences[0]).toMatchObject({ kind: 'global-scale' })
  const byValue = await verify(a, b)
  expect(byValue.differences[0]).toMatchObject({ kind: 'values', relativeRmsDifference: 1 })
})

test('verify takes a tied embedding for the head of another file, and the configuration of the other one', async () => {
  const folder = temporaryFolder()
  const source = await writeDense(join(folder, 'source'))
  const tensors = denseTensors()
  tensors.set('lm_head.weight', tensors.get('model.embed_tokens.weight')!)
  const untied = join(temporaryFolder(), 'untied.dat')
  await writeDat(untied, new Map([...tensors].map(([key, { shape, data }]) => [key, { elementType: 15, shape, data }])))
  expect(await verify(source, untied)).toMatchObject({ equal: true, compared: 25 })
  expect(await verify(untied, source)).toMatchObject({ equal: true, compared: 25 })
  await expect(verify(untied, untied)).rejects.toMatchObject({ code: 'CONFIG_NOT_FOUND' })
})

test('verify finds a parameter that one file alone has', async () => {
  const folder = temporaryFolder()
  const a = await writeModel(folder, packedTensors())
  const tied = packedTensors({ config: { ...tinyConfig, tieWordEmbeddings: true, numHiddenLayers: 1 } })
  const b = await writeModel(temporaryFolder(), tied, { ...tinyConfig, tieWordEmbeddings: true, numHiddenLayers: 1 })
  const { differences } = await verify(a, b)
  expect(differences.filter(({ kind }) => kind === 'only-in-a')).toHaveLength(11)
  expect(differences.filter(({ kind }) => kind === 'values').map(({ name }) => name)).toEqual(['lm_head.weight'])
})

test('verify counts differences like a plain comparison of values, and stops when aborted', async () => {
  const folder = temporaryFolder()
  const source = await writeDense(join(folder, 'source'), { dtype: 'float32' })
  const target = join(folder, 'x.dat')
  await convert(source, target, { scales: 'two-level', ...quiet })
  const { differences } = await verify(source, target)
  const found = differences.find(({ name }) => name === q)!
  await using before = await Qwen3Nvfp4Model.load(source, { weights: 'fp32' })
  await using after = await Qwen3Nvfp4Model.load(target, { weights: 'fp32' })
  const [x, y] = [await before.parameter(q)!.read(), await after.parameter(q)!.read()]
  expect(found.different).toBe(x.filter((value, i) => value !== y[i]).length)
  expect(found.largestDifference).toBe(
    x.reduce((most, value, i) => Math.max(most, Math.abs(Math.fround(y[i]! - value))), 0),
  )
  const reason = new Error('enough')
  await expect(verify(source, target, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
})

test('verify refuses a payload that cannot be compared, by name', async () => {
  const folder = temporaryFolder()
  const source = await writeDense(join(folder, 'source'))
  const bad = await writeDense(join(folder, 'bad'))
  const file = join(bad, 'model.safetensors')
  await using reader = await SafetensorsReader.open(file)
  const bytes = readFileSync(file)
  bytes.writeUInt16LE(bf16Bits(Float32Array.of(Infinity))[0]!, reader.entry(q).offset)
  writeFileSync(file, bytes)
  await expect(verify(source, bad)).rejects.toMatchObject({ code: 'NON_FINITE_WEIGHT' })
  await writeSafetensors(file, denseTensors())
  expect(await verify(source, bad)).toMatchObject({ equal: true })
})
