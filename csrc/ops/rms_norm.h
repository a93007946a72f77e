// y = x · rsqrt(mean(x²) + eps) · w, per row (Zhang & Sennrich 2019, eq. 4; no mean is subtracted).
//
//   y        out f32[T, H]   may alias x
//   inv_rms  out f32[T]      rsqrt(mean(x²) + eps), kept for the backward pass; may be null
//   x        in  f32[T, H]
//   w        in  f32[H]
// Sums in double (truth) or in f32 lanes in a fixed order (variants); one rounding at the store.
//
// backward, with n = x · inv_rms:
//   dx += inv_rms · (w·dy − n · mean(w·dy·n))            in/out f32[T, H], may alias nothing
//   dw += Σ_t dy · n                                     in/out f32[H]; may be null
// Deterministic: dw is summed over t in ascending order for each column.
#pragma once

#include "core/cpu.h"
#include "core/cuda_device.h"

namespace qn {

void rms_norm_cpu(float* y, float* inv_rms, const float* x, const float* w, int64_t T, int64_t H, float eps,
                  const Cpu& cpu);

struct RmsNormBackward {
  float* dx;
  float* dw;
  const float* dy;
  const float* x;
  const float* w;
  const float* inv_rms;
  int64_t T, H;
};
void rms_norm_backward_cpu(const RmsNormBackward& args, const Cpu& cpu);

// On CUDA y, x, dx and dy are bf16[T, H], the rest f32 as above; all pointers on the device, those to rows and to w
// 16-byte aligned; H % 8 == 0, H <= 16384. Sums are f32 in a fixed tree (a row whose squares overflow f32 gives zeros,
// unlike on the CPU); y and dx round once, to bf16. Nothing is allocated and nothing waits.
void rms_norm_cuda(uint16_t* y, float* inv_rms, const uint16_t* x, const float* w, int64_t T, int64_t H, float eps,
                   CudaStream stream);

struct RmsNormBackwardCuda {
  uint16_t* dx;  // out bf16[T, H], may then alias dy; in/out, added to and aliasing nothing, where `accumulate`
  float* dw;     // in/out f32[H], added to; may be null
  const uint16_t* dy;
  const uint16_t* x;
  const float* w;
  const float* inv_rms;
  float* scratch;  // rms_norm_backward_scratch_bytes(T, H) bytes; read only with dw
  int64_t T, H;
  bool accumulate;
};
// dw is summed over runs of rows and then over the runs in order: the split depends on T and H alone.
int64_t rms_norm_backward_scratch_bytes(int64_t T, int64_t H);
void rms_norm_backward_cuda(const RmsNormBackwardCuda& args, CudaStream stream);

}  // namespace qn
