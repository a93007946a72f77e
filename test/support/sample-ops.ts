/** What the sampling ops take and give. */
export interface SampleOptions {
  temperature?: number
  topK?: number
  topP?: number
  minP?: number
  repetitionPenalty?: number
  seed?: number
  topLogprobs?: number
}

export interface Sampled {
  id: number
  logprob: number
  top: { id: number; logprob: number }[]
}
