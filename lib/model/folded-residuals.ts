import type { ParameterSource } from '../../types/checkpoint'
import type { NativeFoldedResidual } from '../../types/native'
import { wrongType } from '../check'

/** A tensor that was saved as one NVFP4 tensor for two. */
export interface FoldedTensor {
  name: string
  /** √(Σ (saved − trained)² / Σ trained²) */
  relativeRmsError: number
}

/** Folds residuals as their entries come to be written. Holds the last folded tensor, and every error. */
export class FoldedResiduals {
  readonly #source: ParameterSource
  readonly #errors = new Map<string, number>()
  #last?: { name: string; folded: Promise<NativeFoldedResidual> }

  constructor(source: ParameterSource) {
    this.#source = source
  }

  get tensors(): FoldedTensor[] {
    return Array.from(this.#errors, ([name, relativeRmsError]) => ({ name, relativeRmsError }))
  }

  /** Again of the same tensor, even while it is being folded, is the same. */
  of(name: string, twoLevel: boolean): Promise<NativeFoldedResidual> {
    if (this.#last?.name !== name) {
      this.#last = { name, folded: this.#fold(name, twoLevel) }
      this.#last.folded.catch(() => {}) // thrown where it is awaited, unless the writing has failed by then
    }
    return this.#last.folded
  }

  async #fold(name: string, twoLevel: boolean): Promise<NativeFoldedResidual> {
    if (!this.#source.fold) throw wrongType('a function', 'source.fold', undefined)
    const folded = await this.#source.fold(name, twoLevel)
    this.#errors.set(name, folded.relativeRmsError)
    return folded
  }
}
