#include "ops/exp_neon.h"
#include "ops/neon_lanes.h"
#include "ops/swiglu_kernels.h"

namespace qn {

namespace {

float32x4_t sigmoid(float32x4_t z) {
  const float32x4_t one = vdupq_n_f32(1.0f);
  return vdivq_f32(one, vaddq_f32(one, exp_4(vnegq_f32(z))));
}

}  // namespace

void swiglu_neon(float* y, const float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; i += 4) {
    const int64_t left = count - i;
    const float32x4_t z = load_f32(gate + i, left), u = load_f32(up + i, left);
    store_f32(y + i, left, vmulq_f32(vmulq_f32(z, sigmoid(z)), u));
  }
}

void swiglu_backward_neon(float* dgate, float* dup, const float* dy, const float* gate, const float* up,
                          int64_t count) {
  const float32x4_t one = vdupq_n_f32(1.0f);
  for (int64_t i = 0; i < count; i += 4) {
    const int64_t left = count - i;
    const float32x4_t z = load_f32(gate + i, left), u = load_f32(up + i, left);
    const float32x4_t g = load_f32(dy + i, left), s = sigmoid(z);
    const float32x4_t slope = vmulq_f32(s, vfmaq_f32(one, z, vsubq_f32(one, s)));
    store_f32(dgate + i, left, vmulq_f32(vmulq_f32(g, u), slope));
    store_f32(dup + i, left, vmulq_f32(g, vmulq_f32(z, s)));
  }
}

}  // namespace qn
