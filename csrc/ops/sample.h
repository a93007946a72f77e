// Chooses the next token from one row of logits.
//
// Order: repetition penalty (positive logits divided by it, negative multiplied; Keskar et al. 2019) over the ids in
// `history` → temperature → top-k → top-p (the smallest set of most likely tokens whose probability reaches topP: the
// token that crosses is kept) → min-p (drops tokens below minP · the largest probability) → one draw. temperature = 0
// is greedy: the largest logit after the penalty, ties to the lowest id; nothing is drawn. Log-probabilities are those
// of the model: log softmax of the raw logits, before penalty and temperature. Non-finite logits:
// Error(kNonFiniteLogits) with the id and the value. At least one token always remains.
//
// Probabilities are whole numbers (ops/sample_math.h), so no sum depends on its order and every device chooses the same
// id from the same logits. Log-probabilities are rounded sums and agree to about 1e-6 only.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cuda_device.h"

namespace qn {

// Beyond it a sum of weights would not fit 64 bits.
constexpr int64_t kMostSampleIds = int64_t{1} << 23;

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
// V <= kMostSampleIds.
Sampled sample_token(const float* logits, int64_t V, const std::vector<int32_t>& history, int64_t position,
                     const SampleOptions& options);

[[noreturn]] void fail_non_finite_logit(int32_t id, float value);

// What sample_cuda says of one token.
struct SampleResult {
  int32_t id;
  float logprob;
  int32_t bad_id;  // the lowest id whose logit is not finite, −1: none. With one, id is 0 and nothing was chosen
  float bad_value;
  int32_t position;  // of the draw; written last, visible to the host by then, so that it may wait for it
};

// On CUDA one launch, which can be captured once and replayed for every token: what changes from token to token is read
// from the device and written there. The id is the CPU's. All pointers are on the device; results and top may also be
// mapped host memory.
struct SampleCuda {
  // in
  const float* logits;  // f32[V]
  int64_t V;            // 1 .. kMostSampleIds
  // The position of the token that these logits follow, read on the device: the draw's position is one more, the number
  // of tokens in the cache.
  const int32_t* position;
  SampleOptions options;  // top_logprobs <= kMostTopLogprobs
  // in and out u8[V]: not 0 where the repetition penalty applies; the new id is added. May be null without a penalty.
  uint8_t* seen;
  // out
  int32_t* next_id;       // where the next step's embedding reads it
  SampleResult* results;  // [slots], of which (the draw's position) % slots is written
  TokenLogprob* top;      // [slots, min(top_logprobs, V)]; null without top_logprobs
  int32_t slots;
  void* scratch;   // sample_scratch_bytes(V), 16-byte aligned; holds nothing between launches
  int32_t blocks;  // sample_blocks_cuda(), or any other that the device takes: the results are the same
};
constexpr int32_t kMostTopLogprobs = 1024;
int64_t sample_scratch_bytes(int64_t V);
// Blocks that work on one row together on the current device.
int32_t sample_blocks_cuda();
void sample_cuda(const SampleCuda& args, CudaStream stream);
// seen[ids[i]] = 1; ids i32[count] on the device, in [0, V).
void mark_seen_cuda(uint8_t* seen, const int32_t* ids, int64_t count, CudaStream stream);

}  // namespace qn
