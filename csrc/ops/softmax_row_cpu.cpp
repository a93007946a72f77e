#include <cmath>
#include <limits>

#include "ops/softmax_row.h"
#include "ops/softmax_row_kernels.h"

namespace qn {

namespace {

float max_portable(const float* x, int64_t count) {
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

double exp_sum_portable(const float* x, int64_t count, float shift) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(std::exp(x[i] - shift));
  return sum;
}

void scale_portable(float* x, int64_t count, float lse, float weight) {
  for (int64_t i = 0; i < count; ++i) x[i] = std::exp(x[i] - lse) * weight;
}

}  // namespace

const SoftmaxRow& softmax_row(Isa isa) {
#if defined(__x86_64__)
  static constexpr SoftmaxRow kAvx512{softmax_row_max_avx512, softmax_row_exp_sum_avx512, softmax_row_scale_avx512};
  static constexpr SoftmaxRow kAvx2{softmax_row_max_avx2, softmax_row_exp_sum_avx2, softmax_row_scale_avx2};
  if (isa == Isa::kAvx512) return kAvx512;
  if (isa == Isa::kAvx2) return kAvx2;
#elif defined(__aarch64__)
  static constexpr SoftmaxRow kNeon{softmax_row_max_neon, softmax_row_exp_sum_neon, softmax_row_scale_neon};
  if (isa == Isa::kNeon) return kNeon;
#endif
  static constexpr SoftmaxRow kPortable{max_portable, exp_sum_portable, scale_portable};
  return kPortable;
}

}  // namespace qn
