// Autoregressive decoding: one job that loops natively and hands out tokens as they are made.
#pragma once

#include <functional>
#include <vector>

#include "model/forward.h"
#include "ops/sample.h"

namespace qn {

struct GenerateArgs {
  std::vector<int32_t> prompt;    // at least one id; appended to the cache
  std::vector<int32_t> history;   // ids before the prompt that the repetition penalty also sees
  int64_t max_tokens = 0;         // new tokens at most; generation also ends when the cache is full
  std::vector<int32_t> stop_ids;  // ends after one of these was produced (it is reported, and not written to the cache)
  SampleOptions sampling;
  int32_t max_repeats = 0;  // this many equal ids in a row is Error(kDegenerateOutput); 0: off
};

enum class FinishReason : uint8_t { kMaxTokens, kStopId, kCacheFull, kCancelled };

// The prompt is prefilled in pieces of at most 512 tokens, and written whole or not at all: an error or a cancellation
// in the middle takes it back. The draw of a token is addressed by its position in the cache. The id that makes the run
// of max_repeats complete is not reported. on_token runs on the lane; returning false ends generation (kCancelled).
// Every produced token except the last one is in the cache when this returns. The cancel token ends it between tokens
// with kCancelled, without an error.
FinishReason generate(Model& model, KvCache& cache, const GenerateArgs& args,
                      const std::function<bool(const Sampled&)>& on_token, const Cpu& cpu);

}  // namespace qn
