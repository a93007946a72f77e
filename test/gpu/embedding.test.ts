/** Needs a CUDA device: `npm run test:gpu`. */
import { fromBf16, toBf16 } from '../support/bf16'
import { ops, seededValues } from '../support/native-ops'
import { seededWeight, type Weight, type WeightKind } from '../support/weights'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

const KINDS: WeightKind[] = ['nvfp4', 'nvfp4+residual', 'f32', 'f16', 'bf16']

function embed(w: Weight, ids: number[]) {
  const x = new Uint16Array(ids.length * w.cols).fill(0x7fff)
  ops.embeddingCuda!(x, w, Int32Array.from(ids), ids.length)
  return x
}

function embedCpu(w: Weight, ids: number[]) {
  const x = new Float32Array(ids.length * w.cols)
  ops.embedding!(x, w, Int32Array.from(ids), ids.length)
  return toBf16(x)
}

function backward(op: string, ids: number[], H: number, begin: number, count: number) {
  const dx = toBf16(seededValues(ids.length * H, 3))
  const dw = seededValues(count * H, 4)
  ops[op]!(dw, op.endsWith('Cuda') ? dx : fromBf16(dx), Int32Array.from(ids), ids.length, H, begin, count)
  return dw
}

/** Few ids over many positions, so that some lie in every tile of 512 positions and most repeat. */
const repeated = (T: number, V: number) => Array.from(seededValues(T, 9), (v) => Math.floor(((v + 1) / 2) ** 3 * V))

withCuda(`embedding on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  describe.each(KINDS)('of %s', (kind) => {
    it.each([16, 48, 1024, 1040, 2560])('gives the bytes of the CPU, rounded, %i columns', (H) => {
      const w = seededWeight(kind, 19, H, 7)
      const ids = [0, 18, 5, 5, 11, 0, 1, 2, 3, 4]
      expect(embed(w, ids)).toEqual(embedCpu(w, ids))
    })
  })

  it('reads dense rows of 8 columns, and nothing for no ids', () => {
    const w = seededWeight('bf16', 3, 8, 7)
    expect(embed(w, [2, 0])).toEqual(embedCpu(w, [2, 0]))
    expect(embed(w, [])).toHaveLength(0)
  })

  it('refuses rows that it cannot read', () => {
    expect(() => embed(seededWeight('f32', 2, 12, 1), [1])).toThrow('a multiple of 8 columns, not 12')
  })
})

withCuda(`embeddingBackward on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each([
    [1, 8],
    [10, 1032],
    [127, 16],
    [128, 1024],
    [129, 2560],
    [512, 24],
    [513, 24],
    [1700, 40],
  ])('gives the bytes of the CPU, T = %i, %i columns, for every slice', (T, H) => {
    const ids = repeated(T, 37)
    for (const [begin, count] of [
      [0, 37],
      [0, 3],
      [3, 1],
      [20, 17],
    ] as const) {
      const cuda = backward('embeddingBackwardCuda', ids, H, begin, count)
      expect(cuda).toEqual(backward('embeddingBackward', ids, H, begin, count))
    }
  })

  it('adds one id of every position in their order', () => {
    const ids = new Array<number>(1300).fill(5)
    const cuda = backward('embeddingBackwardCuda', ids, 16, 5, 1)
    expect(cuda).toEqual(backward('embeddingBackward', ids, 16, 5, 1))
  })

  it('leaves rows of other slices and of no id alone', () => {
    expect(backward('embeddingBackwardCuda', [1, 2, 3], 8, 4, 6)).toEqual(seededValues(6 * 8, 4))
  })
})
