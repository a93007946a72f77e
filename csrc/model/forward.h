// The forward pass: one function for training, serving and diagnosis.
//   ids[B·T] → x[B·T, H] → L × (x += o(attention(norm(x)));  x += down(swiglu(norm(x)))) → norm → logits = x · headᵀ
#pragma once

#include <vector>

#include "model/kv_cache.h"
#include "model/model.h"

namespace qn {

enum class LogitsWanted : uint8_t { kNone, kLast, kAll };

struct ForwardArgs {
  const int32_t* ids = nullptr;  // [B, T], each in [0, V)
  int64_t B = 1, T = 0;
  const uint8_t* mask = nullptr;    // u8[B, T] or null; not with a cache
  const int32_t* starts = nullptr;  // i32[B, T] or null: segments, see ops/attention.h; not with a cache
  LogitsWanted logits = LogitsWanted::kLast;
  bool hidden_states = false;
  // Decode every weight to f32 and multiply with the plain-loop truth: path A of compareForwardPaths.
  bool reference = false;
};

struct ForwardOutput {
  int64_t rows = 0;            // of logits: 0, B or B·T
  Buffer logits;               // f32[rows, V]
  std::vector<Buffer> hidden;  // L + 1 of f32[B·T, H]: input of layer i; the last is after the final norm
};

// Error(kInvalidArgument) unless there is a token and every id of ids[B, T] is in [0, V).
void check_token_ids(const ModelConfig& config, const int32_t* ids, int64_t B, int64_t T);

// Of B sequences of T tokens that begin at `offset`, or with `starts` (which are checked) of tokens in their segments.
std::vector<int32_t> token_positions(const int32_t* starts, int64_t B, int64_t T, int64_t offset);

ForwardOutput forward(Model& model, const ForwardArgs& args, const Cpu& cpu);

// T tokens at positions cache.seq_len() ..; B = 1. The cache advances only when everything succeeded.
ForwardOutput forward_cached(Model& model, KvCache& cache, const ForwardArgs& args, const Cpu& cpu);

}  // namespace qn
