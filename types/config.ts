/** The shape of a Qwen3 dense decoder, under the names of config.json in camel case. */
export interface Qwen3Config {
  /** H */
  hiddenSize: number
  /** L */
  numHiddenLayers: number
  /** Q */
  numAttentionHeads: number
  /** KV; divides numAttentionHeads. */
  numKeyValueHeads: number
  /** D; even. Of a config.json without it: 128, as in transformers. */
  headDim: number
  /** F */
  intermediateSize: number
  /** V */
  vocabSize: number
  /** Base of the rotary angles. */
  ropeTheta: number
  rmsNormEps: number
  /** Whether the head is the embedding. A checkpoint with a head of its own has the last word. */
  tieWordEmbeddings: boolean
  /** Longest context that the checkpoint was made for; a hint, not a limit. */
  maxPositionEmbeddings?: number
  bosTokenId?: number
  /** Generation ends after any of these: those of config.json, then further ones of generation_config.json. */
  eosTokenIds?: number[]
}
