// y[T, N] (+)= x[T, K] · wᵀ on CUDA with both operands in NVFP4, on the FP4 tensor cores of Blackwell. The product
// itself has not run on such hardware yet; everything before it runs, and is tested, on any GPU.
//
//   global        = two_level_global_scale(max |x|), a power of two, one for all of x
//   codes, scales = x / global in NVFP4: the scale of 16 columns is their amax / 6, codes to nearest
//   y             = (global · w.global) · Σ_k code · scale · w.code · w.scale
//
// f32 sums, one rounding to bf16. x is off by about 10 % (RMS, docs/nvfp4.md), and y from that of ops/linear.h by as
// much. A residual is a second product, so a bf16 y is rounded twice. An infinity or NaN in x makes all of y NaN.
// y bf16 or f32, x bf16 and 16-byte aligned, w NVFP4 with 16-byte aligned codes; nothing aliases. Two runs give equal
// bytes. Nothing is allocated, nothing waits: the global scale of x never leaves the device.
#pragma once

#include "ops/linear.h"

namespace qn {

// The shapes that cuBLASLt takes: w[N, K] with N % 16 == 0 and K % 32 == 0, else Error(kUnsupported), which names it.
void require_w4a4_shape(const char* name, int64_t N, int64_t K);

int64_t linear_w4a4_scratch_bytes(int64_t N, int64_t K, int64_t T);

#if defined(QN_WITH_CUDA)
// Error(kUnsupported) for other storages and shapes, and on a GPU without such tensor cores. Scratch 256-byte aligned;
// any surplus of it is not used.
void linear_w4a4_cuda(void* y, CudaFloat y_type, const uint16_t* x, const WeightView& w, int64_t T, bool accumulate,
                      const LinearCuda& cuda);

// --- What it is made of, for tests ---

struct W4a4Scalars {
  uint64_t first_bad;  // nobody reads it: alpha says it
  float amax, global_scale;
  float alpha[2];  // of the packed weight and of its residual; NaN when amax is not finite
  float beta[2];   // 0 and 1
};
// x as cuBLASLt reads it. All pointers on the device.
struct W4a4Input {
  W4a4Scalars* scalars;
  uint8_t* codes;       // out u8[T, K/2], 16-byte aligned
  uint8_t* row_scales;  // out e4m3[T, K/16]
  uint8_t* scales;      // out, the same in blocked form
};
void quantize_w4a4_cuda(const W4a4Input& out, const uint16_t* x, const WeightView& w, int64_t T, CudaStream stream);

// The bytes of to_blocked_scales(blocked, scales, rows, cols); blocked is 4-byte aligned.
void swizzle_scales_cuda(uint8_t* blocked, const uint8_t* scales, int64_t rows, int64_t cols, CudaStream stream);
#endif

}  // namespace qn
