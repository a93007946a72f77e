#include "ops/exp_avx512.h"
#include "ops/swiglu_kernels.h"

namespace qn {

namespace {

__m512 sigmoid(__m512 z) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp_16(_mm512_sub_ps(_mm512_setzero_ps(), z))));
}

__mmask16 lanes(int64_t left) { return static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u); }

}  // namespace

void swiglu_avx512(float* y, const float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 m = lanes(count - i);
    const __m512 z = _mm512_maskz_loadu_ps(m, gate + i), u = _mm512_maskz_loadu_ps(m, up + i);
    _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(_mm512_mul_ps(z, sigmoid(z)), u));
  }
}

void swiglu_backward_avx512(float* dgate, float* dup, const float* dy, const float* gate, const float* up,
                            int64_t count) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 m = lanes(count - i);
    const __m512 z = _mm512_maskz_loadu_ps(m, gate + i), u = _mm512_maskz_loadu_ps(m, up + i);
    const __m512 g = _mm512_maskz_loadu_ps(m, dy + i), s = sigmoid(z);
    const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(z, _mm512_sub_ps(one, s), one));
    _mm512_mask_storeu_ps(dgate + i, m, _mm512_mul_ps(_mm512_mul_ps(g, u), slope));
    _mm512_mask_storeu_ps(dup + i, m, _mm512_mul_ps(g, _mm512_mul_ps(z, s)));
  }
}

}  // namespace qn
