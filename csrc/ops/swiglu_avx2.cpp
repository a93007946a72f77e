#include "ops/exp_avx2.h"
#include "ops/swiglu_kernels.h"

namespace qn {

namespace {

__m256 sigmoid(__m256 z) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_div_ps(one, _mm256_add_ps(one, exp_8(_mm256_sub_ps(_mm256_setzero_ps(), z))));
}

__m256i lanes(int64_t left) { return first_lanes_8(left >= 8 ? 8 : static_cast<int>(left)); }

}  // namespace

void swiglu_avx2(float* y, const float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; i += 8) {
    const __m256i m = lanes(count - i);
    const __m256 z = _mm256_maskload_ps(gate + i, m), u = _mm256_maskload_ps(up + i, m);
    _mm256_maskstore_ps(y + i, m, _mm256_mul_ps(_mm256_mul_ps(z, sigmoid(z)), u));
  }
}

void swiglu_backward_avx2(float* dgate, float* dup, const float* dy, const float* gate, const float* up,
                          int64_t count) {
  const __m256 one = _mm256_set1_ps(1.0f);
  for (int64_t i = 0; i < count; i += 8) {
    const __m256i m = lanes(count - i);
    const __m256 z = _mm256_maskload_ps(gate + i, m), u = _mm256_maskload_ps(up + i, m);
    const __m256 g = _mm256_maskload_ps(dy + i, m), s = sigmoid(z);
    const __m256 slope = _mm256_mul_ps(s, _mm256_fmadd_ps(z, _mm256_sub_ps(one, s), one));
    _mm256_maskstore_ps(dgate + i, m, _mm256_mul_ps(_mm256_mul_ps(g, u), slope));
    _mm256_maskstore_ps(dup + i, m, _mm256_mul_ps(g, _mm256_mul_ps(z, s)));
  }
}

}  // namespace qn
