// Attention tiles in vectors of 8 floats.
#include <immintrin.h>

#include "ops/attention_tiles.h"

namespace qn {

namespace {

using Vec = __m256;
constexpr int kWidth = 8, kBlockRows = 6, kBlockVecs = 2, kDotRows = 2;  // 12 of 16 registers hold sums

Vec load(const float* p) { return _mm256_loadu_ps(p); }
void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
Vec broadcast(float x) { return _mm256_set1_ps(x); }
Vec zero() { return _mm256_setzero_ps(); }
Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
Vec round(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
Vec less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
Vec clear(Vec mask, Vec x) { return _mm256_andnot_ps(mask, x); }
Vec scale_by_power(Vec x, Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
float highest(Vec x) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
float total(Vec x) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
Vec unpack_low(Vec a, Vec b) { return _mm256_unpacklo_ps(a, b); }
Vec unpack_high(Vec a, Vec b) { return _mm256_unpackhi_ps(a, b); }
Vec unpack_low_pairs(Vec a, Vec b) {
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
Vec unpack_high_pairs(Vec a, Vec b) {
  return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
Vec load_lanes(const float* p, int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
}
void store_lane_sums(float* p, Vec x) {
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
Vec widen_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
Vec widen_bf16(const uint16_t* p) {
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

}  // namespace

}  // namespace qn

#include "ops/attention_simd.h"

namespace qn {

const AttentionKernels& attention_kernels_avx2() { return kKernels; }

}  // namespace qn
