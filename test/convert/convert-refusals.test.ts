import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { convert, SafetensorsReader, toConfigJson, type ConvertOptions } from 'qwen3-nvfp4'
import { packedTensors, tinyConfig, writeModel } from '../support/checkpoints'
import { denseConfig, shapesOf, writeDense } from '../support/dense-directory'
import { failure, listFolder, temporaryFolder } from '../support/files'

const q = 'model.layers.0.self_attn.q_proj'
const quiet = { onWarning: () => {} }

describe('convert refuses', () => {
  test('a folder with files in it, a directory without a format, and options of another format', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    expect(await failure(convert(source, source, { format: 'hf-bf16' }))).toMatchObject({ code: 'SAVE_TARGET_EXISTS' })
    await expect(convert(source, join(folder, 'x'))).rejects.toThrow(/^Expected one of dat, .* for format/)
    await expect(convert(source, join(folder, 'x'), { format: 'modelopt', scales: 'one-level' })).rejects.toThrow(
      'about a .dat',
    )
    await expect(convert(source, join(folder, 'x.dat'), { dense: ['a', 3 as never] })).rejects.toThrow('dense[1]')
    await expect(convert(source, join(folder, 'x.dat'), { densetype: 'fp16' } as never)).rejects.toThrow(
      'did you mean denseType',
    )
    expect(listFolder(folder)).toEqual(['source'])
  })

  test('a disk without room, before it writes a byte', async () => {
    const folder = temporaryFolder()
    const source = join(folder, 'source')
    const config = { ...denseConfig, vocabSize: 2 ** 24, hiddenSize: 2 ** 14, numAttentionHeads: 1, headDim: 16 }
    await writeDense(source)
    // A sparse file: a terabyte that takes no room, of which only the header is read.
    let position = 0
    const header: Record<string, object> = {}
    for (const [name, shape] of shapesOf(config)) {
      const bytes = shape.reduce((a, b) => a * b, 4)
      header[name] = { dtype: 'F32', shape, data_offsets: [position, (position += bytes)] }
    }
    const text = Buffer.from(JSON.stringify(header))
    const prefix = Buffer.alloc(8)
    prefix.writeBigUInt64LE(BigInt(text.length))
    writeFileSync(join(source, 'model.safetensors'), Buffer.concat([prefix, text]))
    try {
      truncateSync(join(source, 'model.safetensors'), 8 + text.length + position)
    } catch {
      console.log('skipped: this file system has no files of 1 TB')
      return
    }
    writeFileSync(join(source, 'config.json'), JSON.stringify(toConfigJson(config)))
    expect(await failure(convert(source, join(folder, 'x.dat'), { weights: 'fp32', ...quiet }))).toMatchObject({
      code: 'NOT_ENOUGH_DISK',
      message: expect.stringMatching(/needs \d+ MB and the disk has \d+ MB free/),
    })
    expect(listFolder(folder)).toEqual(['source'])
  })

  test.each(['dat', 'modelopt'] as const)('to go on when aborted, and leaves nothing (%s)', async (format) => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'))
    const target = join(folder, format === 'dat' ? 'x.dat' : 'x')
    for (const phase of ['convert', 'verify'] as const) {
      const controller = new AbortController()
      const reason = new Error('enough')
      const options: ConvertOptions = {
        ...quiet,
        format,
        signal: controller.signal,
        onProgress: (progress) => {
          if (progress.phase === phase && progress.tensor.includes('layers.1.')) controller.abort(reason)
        },
      }
      await expect(convert(source, target, options)).rejects.toBe(reason)
      const broken = new Error('of the callback')
      const throwing = {
        ...quiet,
        format,
        onProgress: () => {
          throw broken
        },
      }
      await expect(convert(source, target, throwing)).rejects.toBe(broken)
      expect(listFolder(folder)).toEqual(['source'])
    }
  })

  test('a value that is not finite, by name, row and column', async () => {
    const folder = temporaryFolder()
    const source = await writeDense(join(folder, 'source'), { dtype: 'float32' })
    const file = join(source, 'model.safetensors')
    await using reader = await SafetensorsReader.open(file)
    const bytes = readFileSync(file)
    bytes.writeFloatLE(NaN, reader.entry(`${q}.weight`).offset + 4 * (48 + 5))
    writeFileSync(file, bytes)
    expect(await failure(convert(source, join(folder, 'x.dat'), quiet))).toMatchObject({
      code: 'NON_FINITE_WEIGHT',
      message: expect.stringMatching(/q_proj.* row 1, column 5/),
    })
    expect(listFolder(folder)).toEqual(['source'])
  })

  test("a tied file's missing names, twenty of them", async () => {
    const folder = temporaryFolder()
    const path = await writeModel(folder, packedTensors(), { ...tinyConfig, numHiddenLayers: 9 })
    const { code, message } = await failure(convert(path, join(folder, 'x.dat'), quiet))
    expect(code).toBe('CHECKPOINT_MISSING_TENSORS')
    expect(message).toMatch(/lacks 77 tensors \(.* and 57 more\)/)
    expect(message.split(', ')).toHaveLength(20)
  })
})
