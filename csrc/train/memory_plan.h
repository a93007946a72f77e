// How many bytes a call will need, from shapes alone: the same templates that the runs take their memory from.
// activation_bytes: of one element, see model/engine.h.
#pragma once

#include "model/forward.h"
#include "train/tape.h"

namespace qn {

struct ActivationPlan {
  int64_t activations = 0;  // arenas and results
  int64_t scratch = 0;      // logits chunk of the loss
};

// forward() or forward_cached() of B·T tokens, results included.
ActivationPlan plan_forward(const ModelConfig& config, int64_t B, int64_t T, LogitsWanted logits, bool hidden_states,
                            int64_t activation_bytes);

// record_forward() + tape_cross_entropy() + backward(): the highest point, without gradients or optimizer.
ActivationPlan plan_training(const ModelConfig& config, int64_t B, int64_t T, Recompute recompute,
                             int64_t activation_bytes);

}  // namespace qn
