// AVX-512 (F, BW, VL, DQ) pieces of the blocked product; gemv_avx512.cpp has the matrix-vector products.
#include <immintrin.h>

#include "ops/gemv_avx512.h"
#include "ops/linear_kernels.h"

namespace qn {

namespace {

// 28 accumulators, two vectors of b and one broadcast of a: 31 of the 32 registers, 28 FMAs per 16 loads.
constexpr int64_t kTileRows = 14, kTileCols = 32;

__mmask16 first(int64_t lanes) {
  return static_cast<__mmask16>(lanes >= 16 ? 0xffff : lanes <= 0 ? 0 : (1 << lanes) - 1);
}

template <int kRows>
void multiply_rows(float* c, int64_t c_stride, const float* a, const float* b, int64_t depth, __mmask16 left,
                   __mmask16 right, bool accumulate) {
  __m512 sum[kRows][2];
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) {
    sum[i][0] = _mm512_setzero_ps();
    sum[i][1] = _mm512_setzero_ps();
    _mm_prefetch(reinterpret_cast<const char*>(c + i * c_stride), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(c + i * c_stride + 16), _MM_HINT_T0);
  }
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileCols) {
    const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      const __m512 factor = _mm512_set1_ps(a[i]);
      sum[i][0] = _mm512_fmadd_ps(factor, b0, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(factor, b1, sum[i][1]);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) {
    float* row = c + i * c_stride;
    if (accumulate) {
      sum[i][0] = _mm512_add_ps(_mm512_maskz_loadu_ps(left, row), sum[i][0]);
      sum[i][1] = _mm512_add_ps(_mm512_maskz_loadu_ps(right, row + 16), sum[i][1]);
    }
    _mm512_mask_storeu_ps(row, left, sum[i][0]);
    _mm512_mask_storeu_ps(row + 16, right, sum[i][1]);
  }
}

void multiply(float* c, int64_t c_stride, const float* a, const float* b, int64_t depth, int64_t rows, int64_t cols,
              bool accumulate) {
  using Rows = void (*)(float*, int64_t, const float*, const float*, int64_t, __mmask16, __mmask16, bool);
  static constexpr Rows kByRows[kTileRows] = {
      multiply_rows<1>,  multiply_rows<2>,  multiply_rows<3>,  multiply_rows<4>, multiply_rows<5>,
      multiply_rows<6>,  multiply_rows<7>,  multiply_rows<8>,  multiply_rows<9>, multiply_rows<10>,
      multiply_rows<11>, multiply_rows<12>, multiply_rows<13>, multiply_rows<14>};
  kByRows[rows - 1](c, c_stride, a, b, depth, first(cols), first(cols - 16), accumulate);
}

// r[i] becomes column i of the 16 x 16 block whose rows r held.
void transpose_block(__m512 r[16]) {
  __m512 t[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // 4 x 4 blocks within 128-bit lanes
    const __m512 a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
    const __m512 c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
    t[i] = _mm512_shuffle_ps(a, c, 0x44);
    t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
    t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
    t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // then the 4 x 4 grid of lanes
    const __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
    r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

void transpose(float* panel, int64_t width, const float* source, int64_t stride, int64_t lanes, int64_t depth) {
  for (int64_t lane = 0; lane < width; lane += 16) {
    const __mmask16 kept = first(width - lane);
    for (int64_t k = 0; k < depth; k += 16) {
      const __mmask16 columns = first(depth - k);
      __m512 r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        r[i] =
            lane + i < lanes ? _mm512_maskz_loadu_ps(columns, source + (lane + i) * stride + k) : _mm512_setzero_ps();
      }
      transpose_block(r);
      float* out = panel + k * width + lane;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        if (k + i < depth) _mm512_mask_storeu_ps(out + i * width, kept, r[i]);
      }
    }
  }
}

void copy(float* panels, int64_t panel_stride, int64_t width, const float* source, int64_t stride, int64_t lanes,
          int64_t depth) {
  for (int64_t from = 0; from < lanes; from += width, panels += panel_stride) {
    for (int64_t k = 0; k < depth; ++k) {
      const float* row = source + k * stride + from;
      float* out = panels + k * width;
      for (int64_t lane = 0; lane < width; lane += 16) {
        const __m512 values = _mm512_maskz_loadu_ps(first(lanes - from - lane), row + lane);
        _mm512_mask_storeu_ps(out + lane, first(width - lane), values);
      }
    }
  }
}

void decode_nvfp4(float* out, const uint8_t* codes, const uint8_t* scales, float global_scale, int64_t count,
                  bool add) {
  const __m512 values = e2m1_values(), global = _mm512_set1_ps(global_scale);
  const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  for (int64_t block = 0; block < count / 16; ++block) {
    int32_t low, high;  // eight columns each
    __builtin_memcpy(&low, codes + 8 * block, 4);
    __builtin_memcpy(&high, codes + 8 * block + 4, 4);
    const __m512i words = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high);
    const __m512 scale = _mm512_set1_ps(e4m3_value(scales[block]));
    const __m512 code = _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), values);
    __m512 value = _mm512_mul_ps(_mm512_mul_ps(code, scale), global);
    if (add) value = _mm512_add_ps(_mm512_loadu_ps(out + 16 * block), value);
    _mm512_storeu_ps(out + 16 * block, value);
  }
}

void decode_bnb4(float* out, const uint8_t* codes, const float* absmax, const float* values, int64_t first,
                 int64_t count) {
  const __m512 table = _mm512_loadu_ps(values);
  const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  for (int64_t k = 0; k < count; k += 16) {
    int32_t low, high;  // eight columns each
    __builtin_memcpy(&low, codes + k / 2, 4);
    __builtin_memcpy(&high, codes + k / 2 + 4, 4);
    const __m512i words = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high);
    const __m512 code = _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), table);
    _mm512_storeu_ps(out + k, _mm512_mul_ps(code, _mm512_set1_ps(absmax[(first + k) / 64])));
  }
}

void decode_f16(float* out, const uint16_t* source, int64_t count) {
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 lanes = first(count - k);
    _mm512_mask_storeu_ps(out + k, lanes, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, source + k)));
  }
}

void decode_bf16(float* out, const uint16_t* source, int64_t count) {
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 lanes = first(count - k);
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, source + k));
    _mm512_mask_storeu_ps(out + k, lanes, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
  }
}

void encode_f16(uint16_t* out, const float* source, int64_t count) {
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 lanes = first(count - k);
    const __m256i halves = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(lanes, source + k), _MM_FROUND_TO_NEAREST_INT);
    _mm256_mask_storeu_epi16(out + k, lanes, halves);
  }
}

}  // namespace

const LinearKernels kLinearAvx512 = {
    .tile_rows = kTileRows,
    .tile_cols = kTileCols,
    .multiply = multiply,
    .transpose = transpose,
    .copy = copy,
    .decode_nvfp4 = decode_nvfp4,
    .decode_bnb4 = decode_bnb4,
    .decode_f16 = decode_f16,
    .decode_bf16 = decode_bf16,
    .encode_f16 = encode_f16,
    .gemv_tokens = kGemvTokensAvx512,
    .gemv_chunk = kGemvChunkAvx512,
    .order = gemv_order_avx512,
    .gemv_nvfp4 = gemv_nvfp4_avx512,
    .gemv_bnb4 = gemv_bnb4_avx512,
    .gemv_f32 = gemv_f32_avx512,
    .gemv_f16 = gemv_f16_avx512,
    .gemv_bf16 = gemv_bf16_avx512,
};

}  // namespace qn
