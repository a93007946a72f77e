import type { ParameterSource } from '../../types/checkpoint'
import type { NativeFoldedResidual } from '../../types/native'
import { wrongType } from '../check'

/** A tensor that was saved as one NVFP4 tensor for two. */
export interface FoldedTensor {
  name: string
  /** √(Σ (saved − trained)² / Σ trained²) */
  relativeRmsError: number
}

/** Folds residuals as their entries come to be written. Holds one folded tensor at a time, and every error. */
export class FoldedResiduals {
  readonly #source: ParameterSource
  readonly #errors = new Map<string, number>()
  #last?: { name: string; folded: NativeFoldedResidual }

  constructor(source: ParameterSource) {
    this.#source = source
  }

  get tensors(): FoldedTensor[] {
    return Array.from(this.#errors, ([name, relativeRmsError]) => ({ name, relativeRmsError }))
  }

  async of(name: string, twoLevel: boolean): Promise<NativeFoldedResidual> {
    if (this.#last?.name === name) return this.#last.folded
    if (!this.#source.fold) throw wrongType('a function', 'source.fold', undefined)
    this.#last = undefined
    const folded = await this.#source.fold(name, twoLevel)
    this.#errors.set(name, folded.relativeRmsError)
    this.#last = { name, folded }
    return folded
  }
}
