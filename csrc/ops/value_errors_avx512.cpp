// ops/value_errors.h with the eight sums in one register each.
#include <immintrin.h>

#include "ops/value_errors_kernels.h"

namespace qn {

void add_errors_avx512(ErrorSums& sums, const float* now, const float* old, int64_t count) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m512d squared_error = _mm512_loadu_pd(sums.squared_error), squares = _mm512_loadu_pd(sums.squares);
  __m256 largest = _mm256_loadu_ps(sums.largest_error);
  for (int64_t i = 0; i < count; i += kErrorSums) {
    const __m256 before = _mm256_loadu_ps(old + i), error = _mm256_sub_ps(_mm256_loadu_ps(now + i), before);
    const __m512d wide = _mm512_cvtps_pd(error), value = _mm512_cvtps_pd(before);
    squared_error = _mm512_add_pd(squared_error, _mm512_mul_pd(wide, wide));
    squares = _mm512_add_pd(squares, _mm512_mul_pd(value, value));
    largest = _mm256_max_ps(largest, _mm256_and_ps(error, magnitude));
  }
  _mm512_storeu_pd(sums.squared_error, squared_error);
  _mm512_storeu_pd(sums.squares, squares);
  _mm256_storeu_ps(sums.largest_error, largest);
}

}  // namespace qn
