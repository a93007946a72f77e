// Token cross-entropy over a vocabulary that arrives in column chunks, so that full logits are never stored.
//
//   loss_t = lse_t − logit[t, label_t],   lse_t = log Σ_v e^logit[t, v];   a label of −100 (kIgnoreLabel) has no loss.
//
// cross_entropy_accumulate folds one chunk logits f32[T, C] = columns [begin, begin + C) into the running state; after
// the last chunk cross_entropy_finish turns the state into lse. cross_entropy_gradient then turns a recomputed chunk
// into its gradient in place: logits[t, v] ← (e^(logit − lse_t) − [v = label_t]) · weight_t; rows with an ignored label
// become 0.
#pragma once

#include "core/cpu.h"
#include "core/cuda_device.h"

namespace qn {

constexpr int32_t kIgnoreLabel = -100;

struct CrossEntropyState {
  float* max;           // f32[T], start at −inf
  float* sum;           // f32[T], start at 0: Σ e^(logit − max)
  float* target_logit;  // f32[T], set by the chunk that holds the label
};

void cross_entropy_accumulate_cpu(const CrossEntropyState& state, const float* logits, const int32_t* labels, int64_t T,
                                  int64_t C, int64_t begin, const Cpu& cpu);
// lse[t] = max + log(sum); may alias state.max.
void cross_entropy_finish_cpu(float* lse, const CrossEntropyState& state, int64_t T);
void cross_entropy_gradient_cpu(float* logits, const float* lse, const int32_t* labels, const float* weight, int64_t T,
                                int64_t C, int64_t begin, const Cpu& cpu);

// On CUDA logits are bf16[T, C], read, and as a gradient rounded once; state, lse and weight stay f32. All pointers on
// the device, logits 16-byte aligned; any C, fastest where C % 8 == 0. Exponentials are summed in f32 in a fixed order.
void cross_entropy_accumulate_cuda(const CrossEntropyState& state, const uint16_t* logits, const int32_t* labels,
                                   int64_t T, int64_t C, int64_t begin, CudaStream stream);
void cross_entropy_finish_cuda(float* lse, const CrossEntropyState& state, int64_t T, CudaStream stream);
void cross_entropy_gradient_cuda(uint16_t* logits, const float* lse, const int32_t* labels, const float* weight,
                                 int64_t T, int64_t C, int64_t begin, CudaStream stream);

}  // namespace qn
