#include "train/memory_plan.h"

#include "model/forward_plan.h"
#include "train/tape_state.h"

namespace qn {

ActivationPlan plan_forward(const ModelConfig& config, int64_t B, int64_t T, LogitsWanted logits, bool hidden_states,
                            int64_t activation_bytes) {
  ArenaPlan arena;
  take_forward_scratch(arena, config, B * T, activation_bytes);
  const int64_t rows = logits == LogitsWanted::kAll ? B * T : logits == LogitsWanted::kLast ? B : 0;
  const int64_t hidden = hidden_states ? (config.L + 1) * B * T * config.H * 4 : 0;
  return {arena.bytes() + rows * config.V * 4 + hidden, 0};
}

ActivationPlan plan_training(const ModelConfig& config, int64_t B, int64_t T, Recompute recompute,
                             int64_t activation_bytes) {
  const int64_t N = B * T;
  ArenaPlan arena;
  take_tape(arena, config, N, recompute, activation_bytes);
  take_backward(arena, config, N, activation_bytes);
  return {arena.bytes(), N * head_chunk_rows(N, config.V, activation_bytes) * activation_bytes};
}

}  // namespace qn
