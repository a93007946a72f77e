// Chooses the next token from one row of logits.
//
// Order: repetition penalty (positive logits divided by it, negative multiplied; Keskar et al. 2019) over the ids in
// `history` → temperature → top-k → top-p (the smallest set of most likely tokens whose probability reaches topP: the
// token that crosses is kept) → min-p (drops tokens below minP · the largest probability) → one draw. temperature = 0
// is greedy: the largest logit after the penalty, ties to the lowest id; nothing is drawn. Log-probabilities are those
// of the model: log softmax of the raw logits, before penalty and temperature. Non-finite logits:
// Error(kNonFiniteLogits) with the id and the value. At least one token always remains.
#pragma once

#include <cstdint>
#include <vector>

namespace qn {

struct SampleOptions {
  float temperature = 0;         // >= 0
  int32_t top_k = 0;             // 0: off
  float top_p = 1;               // (0, 1]; 1: off
  float min_p = 0;               // [0, 1); 0: off
  float repetition_penalty = 1;  // > 0; 1: off
  uint64_t seed = 0;
  int32_t top_logprobs = 0;  // how many of the likeliest tokens to report
};

struct TokenLogprob {
  int32_t id;
  float logprob;
};

struct Sampled {
  int32_t id;
  float logprob;
  std::vector<TokenLogprob> top;  // likeliest first
};

// `position` addresses the random draw (stream kSample), so the same seed and position always draw the same bits.
Sampled sample_token(const float* logits, int64_t V, const std::vector<int32_t>& history, int64_t position,
                     const SampleOptions& options);

}  // namespace qn
