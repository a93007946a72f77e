// dw[R, K] = dyᵀ · x on CUDA for a few tokens, and Σ dw² of each row, in one launch: a step of few tokens would spend
// as long on reading the gradient again as on making it.
//
// dw is an f32 sum in the order of tokens, rounded once to bf16. The squares are those of dw as stored, within 1e-6 of
// their sum; not finite exactly when some element is not. Both depend on the shapes alone: two runs give equal bytes.
#pragma once

#include "ops/adamw.h"

namespace qn {

constexpr int kGemvWeightTokens = 8;

// All pointers on the device.
struct GemvBackwardWeightCuda {
  uint16_t* dw = nullptr;        // out bf16[R, K], 8-byte aligned
  double* squares = nullptr;     // out f64[R]
  const uint16_t* dy = nullptr;  // in bf16[T, dy_stride], of whose columns the first R are those of the rows
  const uint16_t* x = nullptr;   // in bf16[T, K], 8-byte aligned
  int64_t T = 0;                 // at most kGemvWeightTokens
  int64_t R = 0, K = 0;          // K % 4 == 0
  int64_t dy_stride = 0;
  StopFlag stop;  // set where a row is not finite
};

#if defined(QN_WITH_CUDA)
// No scratch. Nothing is allocated and nothing waits.
void gemv_backward_weight_cuda(const GemvBackwardWeightCuda& args, CudaStream stream);
#endif

}  // namespace qn
