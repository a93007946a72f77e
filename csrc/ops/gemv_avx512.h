// Shared by linear_avx512.cpp and gemv_avx512.cpp alone. Everything inline is internal to each of them.
#pragma once

#include <immintrin.h>

#include "ops/linear_kernels.h"

namespace qn {

constexpr int64_t kGemvTokensAvx512 = 8;
constexpr int64_t kGemvChunkAvx512 = 128;  // columns in one register of codes

void gemv_order_avx512(float* ordered, const float* x, int64_t K);
void gemv_nvfp4_avx512(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_bnb4_avx512(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_f32_avx512(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_f16_avx512(const GemvArgs& args, int64_t begin, int64_t end);
void gemv_bf16_avx512(const GemvArgs& args, int64_t begin, int64_t end);

// What each E2M1 code stands for. A permute looks at the low four bits of an index only: no mask is needed.
static inline __m512 e2m1_values() {
  return _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
}

// E4M3 (never negative here) shifted by 7 is an f16 2^8 too small, subnormals included, and the conversion is exact.
constexpr float kE4M3AsF16 = 256.0f;

static inline float e4m3_value(uint8_t bits) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits << 7))) * kE4M3AsF16;
}

}  // namespace qn
