// One whole step as one job: forward, cross-entropy, backward and update, layer by layer; gradients are never stored.
#pragma once

#include "train/packed_adamw.h"
#include "train/tape.h"

namespace qn {

struct TrainStepArgs {
  TapeArgs input;
  const int32_t* labels = nullptr;  // [B, T]; see tape_cross_entropy()
  bool shifted = false;
  double lr = 0;
  double max_grad_norm = 0;    // 0: no clipping; by the previous step's norm, the first step by its own
  double skip_above_loss = 0;  // ends a step with a greater loss before its backward pass; 0: never
};

struct TrainStepResult {
  LossValue loss;  // before the update
  StepStats stats;
};

// A batch without any counted label is Error(kInvalidArgument), a loss that is not finite Error(kNonFiniteGradient)
// with the module that made the first such value; both before anything is touched. An optimizer that clips and knows no
// norm yet has its first gradients made twice. cpu.cancel counts until the first update, from then on the step runs to
// its end.
TrainStepResult train_step(Model& model, PackedAdamW& optimizer, const TrainStepArgs& args, const Cpu& cpu);

}  // namespace qn
