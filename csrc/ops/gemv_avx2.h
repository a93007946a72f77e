// Shared by linear_avx2.cpp and gemv_avx2.cpp alone. Everything inline is internal to each of them.
#pragma once

#include <immintrin.h>

#include "ops/linear_kernels.h"

namespace qn {

constexpr int64_t kGemvTokensAvx2 = 4;  // four sums and four products leave eight registers
constexpr int64_t kGemvChunkAvx2 = 64;  // columns in one register of codes

void gemv_order_avx2(float* ordered, const float* x, int64_t K);
void gemv_nvfp4_avx2(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_bnb4_avx2(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_f32_avx2(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_f16_avx2(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_bf16_avx2(const GemvArgs& args, int64_t begin, int64_t end);

// What the code in bits [at, at + 4) of each word stands for: a permute by the low three bits, then the sign bit moved
// to where an f32 has it. `right` and `left` shift by at and by 28 - at.
static inline __m256 e2m1_value(__m256i right, __m256i left) {
  const __m256 magnitude = _mm256_permutevar8x32_ps(_mm256_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6), right);
  return _mm256_or_ps(magnitude, _mm256_and_ps(_mm256_castsi256_ps(left), _mm256_set1_ps(-0.0f)));
}

// The value of a code in a table of sixteen, whose halves are `lower` and `upper`: a permute of each by the low three
// bits, of which the fourth, the sign of `left`, picks one.
static inline __m256 bnb4_value(__m256 lower, __m256 upper, __m256i right, __m256i left) {
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, right), _mm256_permutevar8x32_ps(upper, right),
                          _mm256_castsi256_ps(left));
}

// E4M3 (never negative here) shifted by 7 is an f16 2^8 too small, subnormals included, and the conversion is exact.
constexpr float kE4M3AsF16 = 256.0f;

static inline float e4m3_value(uint8_t bits) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits << 7))) * kE4M3AsF16;
}

// The first `lanes` of eight.
static inline __m256i first(int64_t lanes) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(lanes)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Eight values, or the first `lanes` of them and zeros.
static inline __m256 load_f32(const float* p, int64_t lanes) {
  return lanes >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first(lanes));
}
static inline __m128i load_halves(const uint16_t* p, int64_t lanes) {
  if (lanes >= 8) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  alignas(16) uint16_t part[8] = {};
  for (int64_t i = 0; i < lanes; ++i) part[i] = p[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(part));
}
static inline __m256 load_f16(const uint16_t* p, int64_t lanes) { return _mm256_cvtph_ps(load_halves(p, lanes)); }
static inline __m256 load_bf16(const uint16_t* p, int64_t lanes) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(p, lanes)), 16));
}

static inline void store_f32(float* p, int64_t lanes, __m256 value) {
  if (lanes >= 8)
    _mm256_storeu_ps(p, value);
  else if (lanes > 0)
    _mm256_maskstore_ps(p, first(lanes), value);
}
static inline void store_halves(uint16_t* p, int64_t lanes, __m128i value) {
  if (lanes >= 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), value);
    return;
  }
  alignas(16) uint16_t part[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(part), value);
  for (int64_t i = 0; i < lanes; ++i) p[i] = part[i];
}

}  // namespace qn
