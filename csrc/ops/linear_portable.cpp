// The matrix products' building blocks as plain loops: any processor, and what the vector versions are tested against.
#include <cstring>

#include "core/dtype.h"
#include "format/bnb4.h"
#include "format/nvfp4.h"
#include "ops/linear_kernels.h"

namespace qn {

namespace {

constexpr int64_t kTileRows = 4, kTileCols = 16;

// Four f32 lanes, SSE2 or NEON registers: plain arithmetic, which GCC and Clang do not find on their own here.
typedef float Lanes __attribute__((vector_size(16)));
constexpr int64_t kTileLanes = kTileCols / 4;

void multiply(float* c, int64_t c_stride, const float* a, const float* b, int64_t depth, int64_t rows, int64_t cols,
              bool accumulate) {
  Lanes sum[kTileRows][kTileLanes] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Lanes column[kTileLanes];
    std::memcpy(column, b + k * kTileCols, sizeof column);
    for (int64_t i = 0; i < kTileRows; ++i) {  // all rows: a fixed count stays in registers
      for (int64_t j = 0; j < kTileLanes; ++j) sum[i][j] += a[k * kTileRows + i] * column[j];
    }
  }
  float tile[kTileRows][kTileCols];
  std::memcpy(tile, sum, sizeof tile);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      float& out = c[i * c_stride + j];
      out = accumulate ? out + tile[i][j] : tile[i][j];
    }
  }
}

void transpose(float* panel, int64_t width, const float* source, int64_t stride, int64_t lanes, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t lane = 0; lane < width; ++lane) {
      panel[k * width + lane] = lane < lanes ? source[lane * stride + k] : 0.0f;
    }
  }
}

void copy(float* panels, int64_t panel_stride, int64_t width, const float* source, int64_t stride, int64_t lanes,
          int64_t depth) {
  for (int64_t from = 0; from < lanes; from += width, panels += panel_stride) {
    for (int64_t k = 0; k < depth; ++k) {
      const float* row = source + k * stride + from;
      float* out = panels + k * width;
      for (int64_t lane = 0; lane < width; ++lane) out[lane] = from + lane < lanes ? row[lane] : 0.0f;
    }
  }
}

void decode_nvfp4(float* out, const uint8_t* codes, const uint8_t* scales, float global_scale, int64_t count,
                  bool add) {
  for (int64_t k = 0; k < count; k += kBlockSize) {
    const float scale = e4m3_to_f32(scales[k / kBlockSize]);
    for (int64_t i = k; i < k + kBlockSize; ++i) {
      // code · scale is exact (2 x 4 significant bits), so the product with global rounds once.
      const float value = e2m1_to_f32(codes[i / 2] >> (4 * (i % 2))) * scale * global_scale;
      out[i] = add ? out[i] + value : value;
    }
  }
}

void decode_bnb4(float* out, const uint8_t* codes, const float* absmax, const float* values, int64_t first,
                 int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = values[(codes[i / 2] >> (4 * (i % 2))) & 15] * absmax[(first + i) / kBnb4BlockSize];
  }
}

void decode_f16(float* out, const uint16_t* source, int64_t count) {
  for (int64_t k = 0; k < count; ++k) out[k] = f16_to_f32(source[k]);
}

void decode_bf16(float* out, const uint16_t* source, int64_t count) {
  for (int64_t k = 0; k < count; ++k) out[k] = bf16_to_f32(source[k]);
}

void encode_f16(uint16_t* out, const float* source, int64_t count) {
  for (int64_t k = 0; k < count; ++k) out[k] = f32_to_f16(source[k]);
}

}  // namespace

const LinearKernels kLinearPortable = {
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
    .gemv_tokens = 0,
    .gemv_chunk = 0,
    .order = nullptr,
    .gemv_nvfp4 = nullptr,
    .gemv_bnb4 = nullptr,
    .gemv_f32 = nullptr,
    .gemv_f16 = nullptr,
    .gemv_bf16 = nullptr,
};

}  // namespace qn
