// y[T, N] (+)= x[T, K] · wᵀ on CUDA for a few tokens, reading bitsandbytes codes (format/bnb4.h) once and nothing else;
// one launch for up to three weights of one codebook that share x.
//
// Table values and x enter as they are, sums are f32: 16 columns of a block add up in order, times the magnitude of the
// block onto the sum of a lane; lanes add up in a tree, and then, in order, up to four warps. The order depends on K
// alone: a token has the same bytes alone and among others, and two runs give equal bytes. bf16 output rounds once.
#pragma once

#include "core/cuda_device.h"
#include "ops/gemv.h"

namespace qn {

// All pointers on the device, but for `weights` itself.
struct GemvBnb4Cuda {
  void* y;                    // out (in too with accumulate) bf16 or f32[T, Σ N]; does not alias x
  const uint16_t* x;          // in bf16[T, K], 16-byte aligned
  const WeightView* weights;  // of one codebook and all of K columns, codes 8-byte aligned
  int weight_count;           // at most kGemvMatrices
  int64_t T;                  // 0 <= T <= kGemvTokens
  CudaFloat y_type;
  bool accumulate;
};

#if defined(QN_WITH_CUDA)
// Whether weights can share a launch.
bool gemv_bnb4_takes(const WeightView* weights, int weight_count);
// No scratch. Nothing is allocated and nothing waits.
void gemv_bnb4_cuda(const GemvBnb4Cuda& args, CudaStream stream);

// Rows [row, row + rows) and columns [col, col + cols) of w[N, K] to bf16[rows, cols]: the f32 value, rounded again.
struct DequantizeBnb4Cuda {
  uint16_t* out;  // 16-byte aligned
  Bnb4View w;     // codes 4-byte aligned
  int64_t row, rows, col, cols;
  int64_t K;  // K % 64 == 0, col and cols % 8 == 0
};
void dequantize_bnb4_cuda(const DequantizeBnb4Cuda& args, CudaStream stream);
#endif

}  // namespace qn
