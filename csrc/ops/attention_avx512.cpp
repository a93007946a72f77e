// Attention tiles in vectors of 16 floats.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 on its own undefined-by-design operands (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "ops/attention_tiles.h"

namespace qn {

namespace {

using Vec = __m512;
constexpr int kWidth = 16, kBlockRows = 6, kBlockVecs = 4, kDotRows = 4;  // 24 of 32 registers hold sums

Vec load(const float* p) { return _mm512_loadu_ps(p); }
void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
Vec broadcast(float x) { return _mm512_set1_ps(x); }
Vec zero() { return _mm512_setzero_ps(); }
Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
Vec round(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
__mmask16 less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
Vec clear(__mmask16 mask, Vec x) { return _mm512_maskz_mov_ps(_knot_mask16(mask), x); }
Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
float highest(Vec x) { return _mm512_reduce_max_ps(x); }
float total(Vec x) { return _mm512_reduce_add_ps(x); }
Vec unpack_low(Vec a, Vec b) { return _mm512_unpacklo_ps(a, b); }
Vec unpack_high(Vec a, Vec b) { return _mm512_unpackhi_ps(a, b); }
Vec unpack_low_pairs(Vec a, Vec b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
Vec unpack_high_pairs(Vec a, Vec b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
Vec load_lanes(const float* p, int64_t stride) {
  Vec x = _mm512_castps128_ps512(_mm_loadu_ps(p));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + stride), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 2 * stride), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(p + 3 * stride), 3);
}
void store_lane_sums(float* p, Vec x) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
Vec widen_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
Vec widen_bf16(const uint16_t* p) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

}  // namespace

}  // namespace qn

#include "ops/attention_simd.h"

namespace qn {

const AttentionKernels& attention_kernels_avx512() { return kKernels; }

}  // namespace qn
