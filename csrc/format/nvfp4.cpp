#include "format/nvfp4.h"

#include <cmath>
#include <cstring>

#include "core/status.h"

namespace qn {

namespace {

// Largest exponent field of the block says at once whether any value is infinite or NaN.
bool block_is_finite(const float* x) {
  uint32_t largest = 0;
  for (int i = 0; i < kBlockSize; ++i) {
    const uint32_t magnitude = __builtin_bit_cast(uint32_t, x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest < 0x7f800000u;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

float two_level_global_scale(float amax) {
  if (!std::isfinite(amax) || amax < 0) fail(Code::kNonFiniteWeight, "the largest magnitude of a tensor is %g", amax);
  return finite_two_level_global_scale(amax);
}

void refuse_nonfinite_block(const float* x, int64_t row, int64_t column) {
  for (int i = 0; i < kBlockSize; ++i) {
    if (!std::isfinite(x[i])) {
      fail(Code::kNonFiniteWeight, "the value at row %lld, column %lld is %g, which NVFP4 cannot hold",
           static_cast<long long>(row), static_cast<long long>(column + i), static_cast<double>(x[i]));
    }
  }
}

void quantize_nvfp4_rows(const QuantizeArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t first_element = (args.random.first_row + row) * args.K;
    for (int64_t k = 0; k < args.K; k += kBlockSize) {
      const float* x = args.x + row * args.K + k;
      if (!block_is_finite(x)) refuse_nonfinite_block(x, args.random.first_row + row, k);
      quantize_nvfp4_block(args.codes + (row * args.K + k) / 2, args.scales + (row * args.K + k) / kBlockSize, x,
                           args.global_scale, args.rounding, args.scale_rule, args.random, first_element + k);
    }
  }
}

void dequantize_nvfp4_rows(float* out, const uint8_t* codes, const uint8_t* scales, float global_scale, int64_t K,
                           int64_t row_begin, int64_t row_end) {
  for (int64_t block = row_begin * K / kBlockSize; block < row_end * K / kBlockSize; ++block) {
    const float scale = e4m3_to_f32(scales[block]);
    const uint8_t* packed = codes + block * (kBlockSize / 2);
    float* values = out + block * kBlockSize;
    for (int j = 0; j < kBlockSize / 2; ++j) {
      // e2m1 · e4m3 is exact in f32, so only the product with the global scale can round.
      values[2 * j] = e2m1_to_f32(packed[j] & 15u) * scale * global_scale;
      values[2 * j + 1] = e2m1_to_f32(packed[j] >> 4) * scale * global_scale;
    }
  }
}

int64_t blocked_scales_bytes(int64_t rows, int64_t cols) { return ceil_div(rows, 128) * ceil_div(cols, 4) * 512; }

int64_t blocked_scale_offset(int64_t r, int64_t c, int64_t cols) {
  return ((r / 128) * ceil_div(cols, 4) + c / 4) * 512 + (r % 32) * 16 + ((r % 128) / 32) * 4 + c % 4;
}

void to_blocked_scales(uint8_t* blocked, const uint8_t* scales, int64_t rows, int64_t cols) {
  std::memset(blocked, 0, static_cast<size_t>(blocked_scales_bytes(rows, cols)));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) blocked[blocked_scale_offset(r, c, cols)] = scales[r * cols + c];
  }
}

void from_blocked_scales(uint8_t* scales, const uint8_t* blocked, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) scales[r * cols + c] = blocked[blocked_scale_offset(r, c, cols)];
  }
}

}  // namespace qn
