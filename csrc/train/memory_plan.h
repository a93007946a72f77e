// How many bytes a training pass will need, from shapes alone: the same templates that the runs take their memory from.
// N tokens; lowest: the layer that backward goes down to, see tape.h; activation_bytes: of one element, see
// model/engine.h.
#pragma once

#include "model/forward_plan.h"
#include "train/packed_adamw.h"
#include "train/tape.h"

namespace qn {

// record_forward() and the logits chunk of a loss, which one without a backward pass holds.
ActivationPlan plan_tape(const ModelConfig& config, int64_t N, Recompute recompute, int64_t lowest,
                         int64_t activation_bytes);
// record_forward() + tape_cross_entropy() + backward(): the highest point, without gradients or optimizer.
ActivationPlan plan_training(const ModelConfig& config, int64_t N, Recompute recompute, int64_t lowest,
                             int64_t activation_bytes);

// On a GPU: Error(kOutOfMemory) with the bytes asked, the bytes free and the remedy unless all of the work fits into
// its memory. Called before anything is allocated or changed; on the CPU they do nothing.
void require_tape_memory(Model& model, const TapeArgs& args);
void require_step_memory(Model& model, const PackedAdamW& optimizer, const TapeArgs& args);
void require_backward_memory(const Tape& tape, bool caller_dlogits, const GradientStore& gradients);

}  // namespace qn
