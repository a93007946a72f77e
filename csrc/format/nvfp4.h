// NVFP4, the only definition of a block.
//
// An NVFP4 tensor [N, K] has E2M1 codes u8[N, K/2], one E4M3 scale per block of 16 consecutive columns e4m3[N, K/16],
// and one FP32 global scale (two-level; 1 for one-level):   value = e2m1(code) · e4m3(scale) · global.
// Nibbles: the LOW nibble is the EVEN column (2j), the high nibble the odd column (2j + 1).
// Worked example: columns {0.5, -6, ...} under scale 1 are codes {0x1, 0xF}, so the first byte is 0xF1.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/philox.h"

namespace qn {

constexpr int kBlockSize = 16;
constexpr float kE2M1Max = 6.0f;
constexpr float kE4M3Max = 448.0f;

// --- E2M1: bit 3 sign, magnitudes 0 .5 1 1.5 2 3 4 6 ---------------------------------------------------------------

// Decodes the low four bits.
QN_HOST_DEVICE inline float e2m1_to_f32(uint32_t code) {
  const uint32_t exponent = (code >> 1) & 3, mantissa = code & 1;
  // exponent 0 is subnormal: 0 or 0.5; otherwise (1 + m/2) · 2^(exponent − 1)
  const float magnitude = exponent == 0
                              ? 0.5f * static_cast<float>(mantissa)
                              : (1.0f + 0.5f * static_cast<float>(mantissa)) * static_cast<float>(1u << (exponent - 1));
  return (code & 8) ? -magnitude : magnitude;
}

// Nearest code, ties to the even code, saturating at ±6; a NaN becomes +6 (callers refuse NaN before).
// Keeps the sign of a negative value that rounds to zero (code 8), as ml_dtypes does.
QN_HOST_DEVICE inline uint32_t f32_to_e2m1(float value) {
  const uint32_t sign = value < 0 || (value == 0 && 1 / value < 0) ? 8u : 0u;
  const float a = value < 0 ? -value : value;
  // Midpoints .25 .75 1.25 1.75 2.5 3.5 5: a tie goes to the even neighbour, hence < or <= in turn.
  const uint32_t code = a <= 0.25f   ? 0u
                        : a < 0.75f  ? 1u
                        : a <= 1.25f ? 2u
                        : a < 1.75f  ? 3u
                        : a <= 2.5f  ? 4u
                        : a < 3.5f   ? 5u
                        : a <= 5.0f  ? 6u
                                     : 7u;
  return sign | code;
}

// --- E4M3 (fn): bias 7, no infinities, 0x7F and 0xFF are the only NaNs, largest 448, smallest subnormal 2^-9 --------

QN_HOST_DEVICE inline float e4m3_to_f32(uint8_t bits) {
  const uint32_t exponent = (bits >> 3) & 15u, mantissa = bits & 7u;
  float magnitude;
  if (exponent == 15 && mantissa == 7) {
    magnitude = NAN;
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    magnitude = std::bit_cast<float>(((exponent + 120) << 23) | (mantissa << 20));
  }
  return (bits & 0x80) ? -magnitude : magnitude;
}

// To nearest, ties to even, saturating at ±448; NaN stays NaN.
QN_HOST_DEVICE uint8_t f32_to_e4m3(float value);

enum class Rounding : uint8_t { kNearestEven, kStochastic };
enum class ScaleRule : uint8_t {
  kAmax,         // scale = e4m3_nearest(amax / 6 / global)
  kFourOverSix,  // the better of amax/6 and amax/4 by squared error of the block, nearest-even codes (arXiv 2512.02010)
  kAmaxUp,  // scale = e4m3 rounded up from amax / 6 / global: nothing saturates, so stochastic rounding is unbiased
};

// Where the stochastic bits of element (row, column) come from: element index = (first_row + row) · cols + column.
struct RandomKey {
  uint64_t seed = 0;
  uint32_t parameter = 0;
  uint32_t step = 0;
  RandomStream stream = RandomStream::kUser;
  int64_t first_row = 0;
};

struct QuantizeArgs {
  uint8_t* codes;   // out u8[N, K/2]
  uint8_t* scales;  // out e4m3[N, K/16]
  const float* x;   // in f32[N, K], finite
  int64_t N, K;     // K % 16 == 0
  float global_scale;
  Rounding rounding;
  ScaleRule scale_rule;
  RandomKey random;  // read when rounding is stochastic
};

// The two-level global scale for a tensor whose largest magnitude is amax: the smallest power of two >= amax / (448·6).
// A power of two changes no mantissa, so rescaling never re-rounds. amax = 0 gives 1.
float two_level_global_scale(float amax);

// The truth, one thread. ops/quantize.h runs the same per row on a pool.
void quantize_nvfp4_rows(const QuantizeArgs& args, int64_t row_begin, int64_t row_end);
// out f32[N, K] = e2m1 · e4m3 · global
void dequantize_nvfp4_rows(float* out, const uint8_t* codes, const uint8_t* scales, float global_scale, int64_t K,
                           int64_t row_begin, int64_t row_end);

// --- The 128x4 swizzle that cuBLASLt wants of block scales (VEC16_UE4M3) --------------------------------------------

// Bytes of the blocked form of scales [rows, cols] (cols counts scales): ceil(rows/128) · ceil(cols/4) · 512.
int64_t blocked_scales_bytes(int64_t rows, int64_t cols);
// offset(r, c) = ((r/128)·ceil(cols/4) + c/4)·512 + (r%32)·16 + ((r%128)/32)·4 + c%4
int64_t blocked_scale_offset(int64_t r, int64_t c, int64_t cols);
// Pads are written as zero.
void to_blocked_scales(uint8_t* blocked, const uint8_t* scales, int64_t rows, int64_t cols);
void from_blocked_scales(uint8_t* scales, const uint8_t* blocked, int64_t rows, int64_t cols);

}  // namespace qn
