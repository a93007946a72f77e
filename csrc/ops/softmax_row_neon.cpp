#include "ops/exp_neon.h"
#include "ops/neon_lanes.h"
#include "ops/softmax_row_kernels.h"

namespace qn {

float softmax_row_max_neon(const float* x, int64_t count) {
  const float lowest = -__builtin_inff();
  float32x4_t max = vdupq_n_f32(lowest);
  for (int64_t i = 0; i < count; i += 4) {
    const float32x4_t v = load_f32(x + i, count - i, lowest);
    max = vbslq_f32(vcgtq_f32(v, max), v, max);  // a NaN compares false: the maximum so far stays
  }
  return vmaxvq_f32(max);
}

double softmax_row_exp_sum_neon(const float* x, int64_t count, float shift) {
  const float32x4_t s = vdupq_n_f32(shift);
  float64x2_t low = vdupq_n_f64(0), high = vdupq_n_f64(0);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t e = exp_4(vsubq_f32(vld1q_f32(x + i), s));
    low = vaddq_f64(low, vcvt_f64_f32(vget_low_f32(e)));
    high = vaddq_f64(high, vcvt_high_f64_f32(e));
  }
  double sum = vaddvq_f64(vaddq_f64(low, high));
  float rest[4];
  vst1q_f32(rest, exp_4(vsubq_f32(load_f32(x + i, count - i), s)));
  for (int64_t j = 0; i + j < count; ++j) sum += static_cast<double>(rest[j]);
  return sum;
}

void softmax_row_scale_neon(float* x, int64_t count, float lse, float weight) {
  const float32x4_t s = vdupq_n_f32(lse);
  for (int64_t i = 0; i < count; i += 4) {
    const float32x4_t e = exp_4(vsubq_f32(load_f32(x + i, count - i), s));
    store_f32(x + i, count - i, vmulq_n_f32(e, weight));
  }
}

}  // namespace qn
