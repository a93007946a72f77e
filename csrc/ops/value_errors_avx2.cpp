// ops/value_errors.h with the eight sums in two registers each.
#include <immintrin.h>

#include "ops/value_errors_kernels.h"

namespace qn {

namespace {

__m256d add_squares(__m256d sum, __m128 values) {
  const __m256d wide = _mm256_cvtps_pd(values);
  return _mm256_add_pd(sum, _mm256_mul_pd(wide, wide));
}

}  // namespace

void add_errors_avx2(ErrorSums& sums, const float* now, const float* old, int64_t count) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256d error_low = _mm256_loadu_pd(sums.squared_error), error_high = _mm256_loadu_pd(sums.squared_error + 4);
  __m256d low = _mm256_loadu_pd(sums.squares), high = _mm256_loadu_pd(sums.squares + 4);
  __m256 largest = _mm256_loadu_ps(sums.largest_error);
  for (int64_t i = 0; i < count; i += kErrorSums) {
    const __m256 before = _mm256_loadu_ps(old + i), error = _mm256_sub_ps(_mm256_loadu_ps(now + i), before);
    error_low = add_squares(error_low, _mm256_castps256_ps128(error));
    error_high = add_squares(error_high, _mm256_extractf128_ps(error, 1));
    low = add_squares(low, _mm256_castps256_ps128(before));
    high = add_squares(high, _mm256_extractf128_ps(before, 1));
    largest = _mm256_max_ps(largest, _mm256_and_ps(error, magnitude));
  }
  _mm256_storeu_pd(sums.squared_error, error_low);
  _mm256_storeu_pd(sums.squared_error + 4, error_high);
  _mm256_storeu_pd(sums.squares, low);
  _mm256_storeu_pd(sums.squares + 4, high);
  _mm256_storeu_ps(sums.largest_error, largest);
}

}  // namespace qn
