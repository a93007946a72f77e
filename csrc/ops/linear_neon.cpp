// NEON pieces of the blocked product; gemv_neon.cpp has the matrix-vector products.
#include "ops/gemv_neon.h"
#include "ops/linear_kernels.h"

namespace qn {

namespace {

// 24 accumulators, four vectors of b and two of a: 30 of the 32 registers.
constexpr int64_t kTileRows = 6, kTileCols = 16;

// sum += a[kRow] · b, a's lanes 0 .. 3 and 4, 5 in two registers.
template <int kRow>
inline void add_row(float32x4_t sum[4], const float32x4_t b[4], float32x4_t a0, float32x2_t a4) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    if constexpr (kRow < 4)
      sum[j] = vfmaq_laneq_f32(sum[j], b[j], a0, kRow);
    else
      sum[j] = vfmaq_lane_f32(sum[j], b[j], a4, kRow - 4);
  }
}

// All 16 columns; multiply() has the tails, whose branches would cost this its registers.
template <int kRows>
void multiply_rows(float* c, int64_t c_stride, const float* a, const float* b, int64_t depth, bool accumulate) {
  float32x4_t sum[kRows][4];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[i][j] = vdupq_n_f32(0);
    __builtin_prefetch(c + i * c_stride);
  }
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileCols) {
    const float32x4_t column[4] = {vld1q_f32(b), vld1q_f32(b + 4), vld1q_f32(b + 8), vld1q_f32(b + 12)};
    const float32x4_t a0 = vld1q_f32(a);
    const float32x2_t a4 = vld1_f32(a + 4);
    add_row<0>(sum[0], column, a0, a4);
    if constexpr (kRows > 1) add_row<1>(sum[1], column, a0, a4);
    if constexpr (kRows > 2) add_row<2>(sum[2], column, a0, a4);
    if constexpr (kRows > 3) add_row<3>(sum[3], column, a0, a4);
    if constexpr (kRows > 4) add_row<4>(sum[4], column, a0, a4);
    if constexpr (kRows > 5) add_row<5>(sum[5], column, a0, a4);
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      float* out = c + i * c_stride + 4 * j;
      vst1q_f32(out, accumulate ? vaddq_f32(vld1q_f32(out), sum[i][j]) : sum[i][j]);
    }
  }
}

void multiply(float* c, int64_t c_stride, const float* a, const float* b, int64_t depth, int64_t rows, int64_t cols,
              bool accumulate) {
  using Rows = void (*)(float*, int64_t, const float*, const float*, int64_t, bool);
  static constexpr Rows kByRows[kTileRows] = {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                              multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
  if (cols == kTileCols) return kByRows[rows - 1](c, c_stride, a, b, depth, accumulate);
  float tile[kTileRows * kTileCols];
  kByRows[rows - 1](tile, kTileCols, a, b, depth, false);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      float& out = c[i * c_stride + j];
      out = accumulate ? out + tile[i * kTileCols + j] : tile[i * kTileCols + j];
    }
  }
}

void transpose(float* panel, int64_t width, const float* source, int64_t stride, int64_t lanes, int64_t depth) {
  for (int64_t lane = 0; lane < width; lane += 4) {
    for (int64_t k = 0; k < depth; k += 4) {
      float32x4_t r[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        r[i] = lane + i < lanes ? load_f32(source + (lane + i) * stride + k, depth - k) : vdupq_n_f32(0);
      }
      transpose_4x4(r);
      float* out = panel + k * width + lane;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
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
      for (int64_t lane = 0; lane < width; lane += 4) {
        store_f32(out + lane, width - lane, load_f32(row + lane, lanes - from - lane));
      }
    }
  }
}

void decode_nvfp4(float* out, const uint8_t* codes, const uint8_t* scales, float global_scale, int64_t count,
                  bool add) {
  for (int64_t k = 0; k < count; k += 16) {
    // code · scale is exact (2 x 4 significant bits), so the product with global rounds once.
    const float32x4_t scale = vmulq_n_f32(vdupq_laneq_f32(small_scales(scales + k / 16, 1), 0), kE4M3AsF16);
    const uint8x8_t pairs = vld1_u8(codes + k / 2);
    const uint8x8_t even = vand_u8(pairs, vdup_n_u8(15)), odd = vshr_n_u8(pairs, 4);
    float32x4_t value[4];
    e2m1_values(value, value + 2, vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd)));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      float32x4_t exact = vmulq_n_f32(vmulq_f32(value[j], scale), global_scale);
      if (add) exact = vaddq_f32(vld1q_f32(out + k + 4 * j), exact);
      vst1q_f32(out + k + 4 * j, exact);
    }
  }
}

void decode_bnb4(float* out, const uint8_t* codes, const float* absmax, const float* values, int64_t first,
                 int64_t count) {
  const uint8x16x4_t table = bnb4_table(values);
  for (int64_t k = 0; k < count; k += 16) {
    const float scale = absmax[(first + k) / 64];
    const uint8x8_t pairs = vld1_u8(codes + k / 2);
    const uint8x8_t even = vand_u8(pairs, vdup_n_u8(15)), odd = vshr_n_u8(pairs, 4);
    float32x4_t value[4];
    bnb4_values(value, value + 2, table, vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd)));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) vst1q_f32(out + k + 4 * j, vmulq_n_f32(value[j], scale));
  }
}

void decode_f16(float* out, const uint16_t* source, int64_t count) {
  for (int64_t k = 0; k < count; k += 4) store_f32(out + k, count - k, widen_f16(load_halves(source + k, count - k)));
}

void decode_bf16(float* out, const uint16_t* source, int64_t count) {
  for (int64_t k = 0; k < count; k += 4) store_f32(out + k, count - k, widen_bf16(load_halves(source + k, count - k)));
}

void encode_f16(uint16_t* out, const float* source, int64_t count) {
  for (int64_t k = 0; k < count; k += 4) {
    const float16x4_t halves = vcvt_f16_f32(load_f32(source + k, count - k));
    store_halves(out + k, count - k, vreinterpret_u16_f16(halves));
  }
}

}  // namespace

const LinearKernels kLinearNeon = {
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
    .gemv_tokens = kGemvTokensNeon,
    .gemv_chunk = kGemvChunkNeon,
    .order = gemv_order_neon,
    .gemv_nvfp4 = gemv_nvfp4_neon,
    .gemv_bnb4 = gemv_bnb4_neon,
    .gemv_f32 = gemv_f32_neon,
    .gemv_f16 = gemv_f16_neon,
    .gemv_bf16 = gemv_bf16_neon,
};

}  // namespace qn
