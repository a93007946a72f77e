/** The state of TorchSharp's AdamW, as a file. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { AdamwFileReader, type AdamwFileState, writeAdamwFile } from 'qwen3-nvfp4/dat'
import { describeWithShared, sharedPath, temporaryFolder } from '../support/files'

const group = { lr: 1e-3, initialLr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01 }
const groups = [{ ...group, amsgrad: false, maximize: false }]

const states: AdamwFileState[] = [
  { step: 3, shape: [2, 3], m: Float32Array.of(1, -2, 3, 0, 5e-9, 6), v: Float32Array.of(1, 2, 3, 4, 5, 6) },
  { step: 2, shape: [], m: Float32Array.of(-1), v: Float32Array.of(1), largestV: Float32Array.of(2) },
]

async function written(): Promise<Buffer> {
  const path = join(temporaryFolder(), 'state')
  await writeAdamwFile(path, groups, states.length, states)
  return readFileSync(path)
}

async function readAll(bytes: Uint8Array) {
  await using reader = await AdamwFileReader.open(bytes)
  const read: AdamwFileState[] = []
  for (let i = 0; i < reader.states.length; i++) read.push(await reader.read(i))
  return { groups: reader.groups, states: read }
}

test('what is written is read', async () => {
  expect(await readAll(await written())).toEqual({ groups, states })
})

describeWithShared("a file of exportsd.py's save_adamw", ['dat', 'adamw-state.dat'], () => {
  let bytes: Buffer
  beforeAll(() => {
    bytes = readFileSync(sharedPath('dat', 'adamw-state.dat'))
  })

  test('has its options, steps, shapes and moments', async () => {
    const read = await readAll(bytes)
    expect(read.groups).toEqual(groups)
    expect(read.states.map(({ step, shape }) => ({ step, shape }))).toEqual([
      { step: 3, shape: [4, 8] },
      { step: 3, shape: [4] },
    ])
    const values = read.states.flatMap(({ m, v }) => [...m, ...v])
    expect(values.every((value) => Number.isFinite(value) && Math.abs(value) < 1)).toBe(true)
    expect(read.states.every(({ v }) => v.every((value) => value > 0))).toBe(true)
  })

  test('is written again byte for byte', async () => {
    const read = await readAll(bytes)
    const path = join(temporaryFolder(), 'again')
    await writeAdamwFile(path, read.groups, read.states.length, read.states)
    expect(readFileSync(path)).toEqual(bytes)
  })
})

describe('a damaged file is refused with the byte', () => {
  const refused = (change: (bytes: Buffer) => Uint8Array, message: string | RegExp) => async () => {
    await expect(AdamwFileReader.open(change(await written()))).rejects.toMatchObject({
      code: 'OPTIMIZER_FILE_INVALID',
      message: expect.stringMatching(message),
      offset: expect.any(Number),
    })
  }
  const set = (at: number, value: number) => (bytes: Buffer) => {
    bytes[at] = value
    return bytes
  }

  // name 0-5, groups 6, states 7, options 8-57, step 58-65, then type, dims, shape and values of m
  test('of another optimizer', refused(set(1, 0x42), 'it holds the state of "BdamW", not of AdamW'))
  test(
    'that goes on',
    refused((bytes) => Buffer.concat([bytes, Buffer.of(0)]), 'it goes on after its last state'),
  )
  test('with a boolean of 7', refused(set(56, 7), '7 stands for a boolean'))
  test('with negative steps', refused(set(65, 0x80), 'a state has taken -'))
  test('with integers for moments', refused(set(66, 4), 'moments have element type 4, which is no float'))
  test('with too many dimensions', refused(set(67, 9), 'a tensor has 9 dimensions'))
  test('with a tensor that is too long', refused(set(68, 127), 'a tensor of \\[127,3\\] is longer than the file'))
  test(
    'with moments that differ in shape',
    refused(set(96, 3), /moments of one parameter are|is longer than|which is no float/),
  )

  test('at every place where it is cut', async () => {
    const bytes = await written()
    for (let end = 0; end < bytes.length; end++) {
      await expect(AdamwFileReader.open(bytes.subarray(0, end))).rejects.toMatchObject({
        code: 'OPTIMIZER_FILE_INVALID',
      })
    }
  })
})
