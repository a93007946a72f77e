// dx[T, K] (+)= Σ_i dy_i[T, N_i] · w_i[N_i, K] on CUDA for a few tokens, reading packed NVFP4 weights once: the weights
// that shared an x (q, k and v; gate and up), each with or without a residual, in one sum.
//
// code · scale enters the tensor cores as bf16, which is exact; sums are f32: of every 16 rows in the tensor core, of
// the rows of a warp in order, of the eight warps of a slice in order, times the global scale, and of the slices in
// order. What a slice is depends on the shapes alone, so two runs give equal bytes on any device. dx rounds once, to
// bf16.
#pragma once

#include "core/cuda_device.h"
#include "ops/weight_view.h"

namespace qn {

constexpr int kGemvInputTokens = 8;
constexpr int kGemvInputWeights = 3;

// All pointers on the device, but for `weights` itself.
struct GemvBackwardInputCuda {
  uint16_t* dx = nullptr;  // out (in too with accumulate) bf16[T, K], 8-byte aligned; aliases nothing
  const uint16_t* dy[kGemvInputWeights] = {};  // in bf16[T, N_i], 16-byte aligned
  int64_t dy_strides[kGemvInputWeights] = {};  // elements from token to token; fast when a multiple of 8
  const WeightView* weights = nullptr;         // NVFP4, all of K columns; fast when K % 256 == 0 and every N % 8 == 0
  int weight_count = 0;
  int64_t T = 0;            // at most kGemvInputTokens
  void* scratch = nullptr;  // 16-byte aligned
  bool accumulate = false;
};

#if defined(QN_WITH_CUDA)
// Under 2.2 MiB up to K = 67,584.
int64_t gemv_backward_input_scratch_bytes(const WeightView* weights, int weight_count, int64_t T);
// Two launches. Nothing is allocated and nothing waits.
void gemv_backward_input_cuda(const GemvBackwardInputCuda& args, CudaStream stream);
#endif

}  // namespace qn
