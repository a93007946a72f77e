/** qwen3-nvfp4: run and train Qwen3 in 4 bits from Node.js. */
export { Qwen3Nvfp4Error, errorCodes } from './errors'
export type { ErrorCode } from './errors'

export type * from '../types/config'
export type * from '../types/options'
export type * from '../types/tensor'
