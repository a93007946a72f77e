/** qwen3-nvfp4: run and train Qwen3 in 4 bits from Node.js. */
export { Qwen3Nvfp4Error, errorCodes } from './errors'
export type { ErrorCode } from './errors'

export { ChatTemplate } from './chat/chat-template'
export { StopStringMatcher } from './chat/stop-strings'
export type { StopStringResult } from './chat/stop-strings'
export { TextStream, Utf8Stream } from './chat/text-stream'
export type { TokenBytes } from './chat/text-stream'
export { Tokenizer } from './chat/tokenizer'
export type { DecodeOptions, EncodeOptions } from './chat/tokenizer'

export type * from '../types/chat'
export type * from '../types/config'
export type * from '../types/options'
export type * from '../types/tensor'
