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

}  // namespace qn
