/** What the plan of a saved file is made of. */
import type { LayoutEntry, ParameterForm, ParameterPart } from '../../types/checkpoint'
import { findElementType, payloadBytes } from '../format/element-types'

/** One entry of the file to write; `form` is absent for a tensor that is only passed through. */
export interface PlannedEntry extends LayoutEntry {
  form?: ParameterForm
  /** The levels that codes and residual are folded into. */
  folds?: 'one-level' | 'two-level'
  bytes: number
}

/** The entries of a parameter in the file that the model came from. */
export type Remembered = ReadonlyMap<ParameterPart, LayoutEntry>

export function entryBytes({ shape, elementType }: LayoutEntry): number {
  return payloadBytes(shape, findElementType(elementType)!.bytes)!
}
