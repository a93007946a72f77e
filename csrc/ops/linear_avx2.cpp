// AVX2, FMA and F16C pieces of the blocked product; gemv_avx2.cpp has the matrix-vector products.
#include <immintrin.h>

#include "ops/gemv_avx2.h"
#include "ops/linear_kernels.h"

namespace qn {

namespace {

// 12 accumulators, two vectors of b and one broadcast of a: 15 of the 16 registers.
constexpr int64_t kTileRows = 6, kTileCols = 16;

template <int kRows>
void multiply_rows(float* c, int64_t c_stride, const float* a, const float* b, int64_t depth, int64_t cols,
                   bool accumulate) {
  __m256 sum[kRows][2];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    sum[i][0] = _mm256_setzero_ps();
    sum[i][1] = _mm256_setzero_ps();
    _mm_prefetch(reinterpret_cast<const char*>(c + i * c_stride), _MM_HINT_T0);
  }
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileCols) {
    const __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m256 factor = _mm256_broadcast_ss(a + i);
      sum[i][0] = _mm256_fmadd_ps(factor, b0, sum[i][0]);
      sum[i][1] = _mm256_fmadd_ps(factor, b1, sum[i][1]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    float* row = c + i * c_stride;
    if (accumulate) {
      sum[i][0] = _mm256_add_ps(load_f32(row, cols), sum[i][0]);
      if (cols > 8) sum[i][1] = _mm256_add_ps(load_f32(row + 8, cols - 8), sum[i][1]);
    }
    store_f32(row, cols, sum[i][0]);
    store_f32(row + 8, cols - 8, sum[i][1]);
  }
}

void multiply(float* c, int64_t c_stride, const float* a, const float* b, int64_t depth, int64_t rows, int64_t cols,
              bool accumulate) {
  using Rows = void (*)(float*, int64_t, const float*, const float*, int64_t, int64_t, bool);
  static constexpr Rows kByRows[kTileRows] = {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                              multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
  kByRows[rows - 1](c, c_stride, a, b, depth, cols, accumulate);
}

// r[i] becomes column i of the 8 x 8 block whose rows r held.
void transpose_block(__m256 r[8]) {
  __m256 t[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {  // 4 x 4 blocks within 128-bit lanes
    const __m256 a = _mm256_unpacklo_ps(r[i], r[i + 1]), b = _mm256_unpackhi_ps(r[i], r[i + 1]);
    const __m256 c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
    t[i] = _mm256_shuffle_ps(a, c, 0x44);
    t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
    t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
    t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
  }
}

void transpose(float* panel, int64_t width, const float* source, int64_t stride, int64_t lanes, int64_t depth) {
  for (int64_t lane = 0; lane < width; lane += 8) {
    for (int64_t k = 0; k < depth; k += 8) {
      __m256 r[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        r[i] = lane + i < lanes ? load_f32(source + (lane + i) * stride + k, depth - k) : _mm256_setzero_ps();
      }
      transpose_block(r);
      float* out = panel + k * width + lane;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        if (k + i < depth) store_f32(out + i * width, width - lane, r[i]);
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
      for (int64_t lane = 0; lane < width; lane += 8) {
        const int64_t left = lanes - from - lane;
        store_f32(out + lane, width - lane, left > 0 ? load_f32(row + lane, left) : _mm256_setzero_ps());
      }
    }
  }
}

void decode_nvfp4(float* out, const uint8_t* codes, const uint8_t* scales, float global_scale, int64_t count,
                  bool add) {
  const __m256 global = _mm256_set1_ps(global_scale);
  const __m256i right = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i left = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
  for (int64_t k = 0; k < count; k += 8) {
    int32_t eight;
    __builtin_memcpy(&eight, codes + k / 2, 4);
    const __m256i words = _mm256_set1_epi32(eight);
    const __m256 scale = _mm256_set1_ps(e4m3_value(scales[k / 16]));
    const __m256 code = e2m1_value(_mm256_srlv_epi32(words, right), _mm256_sllv_epi32(words, left));
    __m256 value = _mm256_mul_ps(_mm256_mul_ps(code, scale), global);
    if (add) value = _mm256_add_ps(_mm256_loadu_ps(out + k), value);
    _mm256_storeu_ps(out + k, value);
  }
}

void decode_bnb4(float* out, const uint8_t* codes, const float* absmax, const float* values, int64_t first,
                 int64_t count) {
  const __m256 lower = _mm256_loadu_ps(values), upper = _mm256_loadu_ps(values + 8);
  const __m256i right = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i left = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
  for (int64_t k = 0; k < count; k += 8) {
    int32_t eight;
    __builtin_memcpy(&eight, codes + k / 2, 4);
    const __m256i words = _mm256_set1_epi32(eight);
    const __m256 code = bnb4_value(lower, upper, _mm256_srlv_epi32(words, right), _mm256_sllv_epi32(words, left));
    _mm256_storeu_ps(out + k, _mm256_mul_ps(code, _mm256_set1_ps(absmax[(first + k) / 64])));
  }
}

void decode_f16(float* out, const uint16_t* source, int64_t count) {
  for (int64_t k = 0; k < count; k += 8) store_f32(out + k, count - k, load_f16(source + k, count - k));
}

void decode_bf16(float* out, const uint16_t* source, int64_t count) {
  for (int64_t k = 0; k < count; k += 8) store_f32(out + k, count - k, load_bf16(source + k, count - k));
}

void encode_f16(uint16_t* out, const float* source, int64_t count) {
  for (int64_t k = 0; k < count; k += 8) {
    const __m128i halves = _mm256_cvtps_ph(load_f32(source + k, count - k), _MM_FROUND_TO_NEAREST_INT);
    store_halves(out + k, count - k, halves);
  }
}

}  // namespace

const LinearKernels kLinearAvx2 = {
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
    .gemv_tokens = kGemvTokensAvx2,
    .gemv_chunk = kGemvChunkAvx2,
    .order = gemv_order_avx2,
    .gemv_nvfp4 = gemv_nvfp4_avx2,
    .gemv_bnb4 = gemv_bnb4_avx2,
    .gemv_f32 = gemv_f32_avx2,
    .gemv_f16 = gemv_f16_avx2,
    .gemv_bf16 = gemv_bf16_avx2,
};

}  // namespace qn
