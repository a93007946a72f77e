// y[T, N] (+)= x[T, K] · wᵀ on CUDA for a few tokens, reading the packed NVFP4 weight once and nothing else.
//
// The weight enters the tensor cores as bf16 code · scale, which is exact; sums are f32 in an order that depends on the
// shape and the number of multiprocessors alone, so two runs on one device give equal bytes. The global scale
// multiplies the sum, and bf16 output rounds once. Every weight costs the same for any T up to kGemvTokens.
#pragma once

#include "core/cuda_device.h"
#include "ops/weight_view.h"

namespace qn {

// More tokens are cheaper through a blocked product.
constexpr int64_t kGemvTokens = 8;

enum class CudaFloat : uint8_t { kBF16, kF32 };

// All pointers on the device.
struct GemvCudaArgs {
  void* y;            // out (in too with accumulate) bf16[T, N] or f32[T, N]; never aliases x
  const uint16_t* x;  // in bf16[T, K], 16-byte aligned
  Nvfp4View w;        // in codes u8[N, K/2], 16-byte aligned; scales e4m3[N, K/16], 2-byte aligned
  int64_t T, N, K;    // 0 <= T <= kGemvTokens, K % 16 == 0, fastest when K % 256 == 0
  CudaFloat y_type = CudaFloat::kBF16;
  bool accumulate = false;  // adds to y
};

#if defined(QN_WITH_CUDA)
// Whether x fits the shared memory of a block: true for K up to 49,000 even where that is smallest (99 KiB).
bool gemv_nvfp4_fits_cuda(int64_t K);
// No scratch. Nothing is allocated and nothing waits.
void gemv_nvfp4_cuda(const GemvCudaArgs& args, CudaStream stream);
#endif

}  // namespace qn
