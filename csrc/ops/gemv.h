// y[T, N] (+)= x[T, K] · wᵀ on CUDA for a few tokens, reading packed NVFP4 weights once and nothing else; one launch
// for up to three weights that share x, with what stands before and after them in a layer:
//
//   norm     x is normalised first, as rms_norm_cuda does it, to the same bits
//   swiglu   weights gate and up: y = silu(x · gateᵀ) · (x · upᵀ), both products rounded to bf16 first, so that y has
//            the bits of two products and swiglu_cuda
//   residual weights: both parts in one sum, rounded once
//
// Codes and x enter the tensor cores exactly, sums are f32, and bf16 output rounds once. One token: code · x, each 16
// columns times their scale, added by columns; several: code · scale is exact too and all columns add up in the tensor
// core. So a token has the same bytes among any two to eight, others alone. Within either the order depends on K alone:
// not on N, the other weights or the device; two runs give equal bytes. The global scale multiplies the sum.
// A single x is scaled by 2^64 inside: its magnitudes must stay below that.
#pragma once

#include "core/cuda_device.h"
#include "ops/weight_view.h"

namespace qn {

// More tokens are cheaper through a blocked product.
constexpr int64_t kGemvTokens = 8;
constexpr int kGemvMatrices = 3;

enum class CudaFloat : uint8_t { kBF16, kF32 };

// All pointers on the device.
struct GemvMatrix {
  void* y = nullptr;  // out (in too with accumulate) bf16[T, N] or f32[T, N]; aliases neither x nor another y
  int64_t N = 0;
  Nvfp4View w;           // in codes u8[N, K/2] and scales e4m3[N, K/16], 16-byte aligned where K % 512 == 0, else 8
  Nvfp4View residual;    // added to w; codes == nullptr: none
  int64_t y_stride = 0;  // elements from token to token; 0: N
};

struct GemvCudaArgs {
  GemvMatrix matrices[kGemvMatrices];
  int matrix_count = 1;
  const uint16_t* x;  // in bf16[T, K], 16-byte aligned
  int64_t T, K;       // 0 <= T <= kGemvTokens, K % 16 == 0, fast only when K % 512 == 0
  CudaFloat y_type = CudaFloat::kBF16;
  bool accumulate = false;      // adds to y; not with swiglu
  bool swiglu = false;          // matrices gate, up of equal N; y of the first, bf16
  const float* norm = nullptr;  // in f32[K], 16-byte aligned, K % 8 == 0, K <= 16384; null: none
  float norm_eps = 0;
  // Lets this kernel start while the one before it in the stream still runs (programmatic dependent launch, from
  // compute capability 9.0 on); all but the norm is touched only when that one has ended. Then no kernel of an unbroken
  // chain of such launches may write the norm.
  bool overlap_previous = false;
};

#if defined(QN_WITH_CUDA)
// Whether x fits the shared memory of a block: true for K up to 18,000 even where that is smallest (99 KiB).
bool gemv_nvfp4_fits_cuda(int64_t K);
// No scratch. Nothing is allocated and nothing waits.
void gemv_nvfp4_cuda(const GemvCudaArgs& args, CudaStream stream);
#endif

}  // namespace qn
