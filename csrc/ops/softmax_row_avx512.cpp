#include "ops/exp_avx512.h"
#include "ops/softmax_row_kernels.h"

namespace qn {

namespace {

__mmask16 lanes(int64_t left) { return static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u); }

}  // namespace

float softmax_row_max_avx512(const float* x, int64_t count) {
  __m512 max = _mm512_set1_ps(-__builtin_inff());
  for (int64_t i = 0; i < count; i += 16) {
    // With a NaN the second operand is the result: the maximum so far.
    max = _mm512_max_ps(_mm512_mask_loadu_ps(max, lanes(count - i), x + i), max);
  }
  return _mm512_reduce_max_ps(max);
}

double softmax_row_exp_sum_avx512(const float* x, int64_t count, float shift) {
  const __m512 s = _mm512_set1_ps(shift);
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 m = lanes(count - i);
    const __m512 e = _mm512_maskz_mov_ps(m, exp_16(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), s)));
    low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(e)));
    high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(e, 1)));
  }
  return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

void softmax_row_scale_avx512(float* x, int64_t count, float lse, float weight) {
  const __m512 s = _mm512_set1_ps(lse), w = _mm512_set1_ps(weight);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 m = lanes(count - i);
    const __m512 e = exp_16(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), s));
    _mm512_mask_storeu_ps(x + i, m, _mm512_mul_ps(e, w));
  }
}

}  // namespace qn
