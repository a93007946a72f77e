#include "ops/exp_avx2.h"
#include "ops/softmax_row_kernels.h"

namespace qn {

namespace {

__m256i lanes(int64_t left) { return first_lanes_8(left >= 8 ? 8 : static_cast<int>(left)); }

}  // namespace

float softmax_row_max_avx2(const float* x, int64_t count) {
  const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
  __m256 max = lowest;
  for (int64_t i = 0; i < count; i += 8) {
    const __m256i m = lanes(count - i);
    const __m256 v = _mm256_blendv_ps(lowest, _mm256_maskload_ps(x + i, m), _mm256_castsi256_ps(m));
    max = _mm256_max_ps(v, max);  // with a NaN the second operand is the result: the maximum so far
  }
  alignas(32) float lane[8];
  _mm256_store_ps(lane, max);
  float result = lane[0];
  for (int j = 1; j < 8; ++j) result = lane[j] > result ? lane[j] : result;
  return result;
}

double softmax_row_exp_sum_avx2(const float* x, int64_t count, float shift) {
  const __m256 s = _mm256_set1_ps(shift);
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  for (int64_t i = 0; i < count; i += 8) {
    const __m256i m = lanes(count - i);
    const __m256 e = _mm256_and_ps(exp_8(_mm256_sub_ps(_mm256_maskload_ps(x + i, m), s)), _mm256_castsi256_ps(m));
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(e)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(e, 1)));
  }
  alignas(32) double lane[4];
  _mm256_store_pd(lane, _mm256_add_pd(low, high));
  return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

void softmax_row_scale_avx2(float* x, int64_t count, float lse, float weight) {
  const __m256 s = _mm256_set1_ps(lse), w = _mm256_set1_ps(weight);
  for (int64_t i = 0; i < count; i += 8) {
    const __m256i m = lanes(count - i);
    const __m256 e = exp_8(_mm256_sub_ps(_mm256_maskload_ps(x + i, m), s));
    _mm256_maskstore_ps(x + i, m, _mm256_mul_ps(e, w));
  }
}

}  // namespace qn
