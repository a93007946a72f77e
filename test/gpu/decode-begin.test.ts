/** What a step of decoding begins with. Needs a CUDA device: `npm run test:gpu`. */
import { ops } from '../support/native-ops'
import { seededWeight, type WeightKind } from '../support/weights'

const probe = ops.probeCuda!() as { devices: number; reason: string }
const withCuda = probe.devices > 0 ? describe : describe.skip

const KINDS: WeightKind[] = ['nvfp4', 'nvfp4+residual', 'f32', 'f16', 'bf16']

withCuda(`beginning a step on CUDA${probe.reason && ` (${probe.reason})`}`, () => {
  it.each(KINDS)('advances, fills the table and reads the row as their own launches do, %s', (kind) => {
    for (const [H, D, before] of [
      [16, 16, -1],
      [1040, 64, 41],
      [2560, 128, 40_000],
      [2560, 512, 7],
    ] as const) {
      const w = seededWeight(kind, 19, H, 7)
      const id = Int32Array.of(11)
      const expected = {
        x: new Uint16Array(H),
        cosines: new Float32Array(D / 2),
        sines: new Float32Array(D / 2),
        position: Int32Array.of(before + 1),
      }
      ops.embeddingCuda!(expected.x, w, id, 1)
      ops.ropeTableCuda!(expected.cosines, expected.sines, expected.position, 1, D, 1e6)
      const actual = {
        x: new Uint16Array(H).fill(0x7fff),
        cosines: new Float32Array(D / 2).fill(NaN),
        sines: new Float32Array(D / 2).fill(NaN),
        position: Int32Array.of(before),
      }
      ops.decodeBeginCuda!(actual.x, actual.cosines, actual.sines, actual.position, w, id, D, 1e6)
      expect(actual).toEqual(expected)
    }
  })

  it('refuses rows that it cannot read', () => {
    const [table, position] = [new Float32Array(8), Int32Array.of(0)]
    const w = seededWeight('f32', 2, 12, 1)
    expect(() =>
      ops.decodeBeginCuda!(new Uint16Array(12), table, table.slice(), position, w, Int32Array.of(1), 16, 1e6),
    ).toThrow('a multiple of 8 columns, not 12')
  })
})
