import type { ParameterForm, ParameterSource, StoredPart } from '../../types/checkpoint'
import { PieceReader } from '../format/piece-reader'

/** Bytes of a parameter that are read at a time. */
export const chunkBytes = 4 << 20

/** Reads parts of parameters in pieces. */
export class StoredParts {
  readonly parameters: readonly ParameterForm[]
  readonly #source: ParameterSource
  readonly #pieces = new PieceReader(chunkBytes)

  constructor(source: ParameterSource) {
    this.#source = source
    this.parameters = source.parameters
  }

  /** Reading begins at once; a piece holds until the next is asked for. */
  read({ name, rows, cols, storage }: ParameterForm, part: StoredPart): AsyncGenerator<Uint8Array> {
    const dense = storage === 'fp32' ? 4 : 2
    const perElement = { values: dense, codes: 1 / 2, scales: 1 / 16, residualCodes: 1 / 2, residualScales: 1 / 16 }
    const total = rows * cols * perElement[part]
    return this.#pieces.read(total, (offset, target) => this.#source.read(name, part, offset, target))
  }
}
