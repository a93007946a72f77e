// NVFP4, the only definition of a block.
//
// An NVFP4 tensor [N, K] has E2M1 codes u8[N, K/2], one E4M3 scale per block of 16 consecutive columns e4m3[N, K/16],
// and one FP32 global scale (two-level; 1 for one-level):   value = e2m1(code) · e4m3(scale) · global.
// Nibbles: the LOW nibble is the EVEN column (2j), the high nibble the odd column (2j + 1).
// Worked example: columns {0.5, -6, ...} under scale 1 are codes {0x1, 0xF}, so the first byte is 0xF1.
#pragma once

#include <cstdint>

#include "core/philox.h"

// Always inlined, so that files compiled for a wider instruction set leave no copy behind that the linker could give to
// the whole addon.
#define QN_BLOCK_CODE QN_HOST_DEVICE __attribute__((always_inline))

namespace qn {

constexpr int kBlockSize = 16;
constexpr float kE2M1Max = 6.0f;
constexpr float kE4M3Max = 448.0f;

// --- E2M1: bit 3 sign, magnitudes 0 .5 1 1.5 2 3 4 6 ---------------------------------------------------------------

// Decodes the low four bits.
QN_BLOCK_CODE constexpr float e2m1_to_f32(uint32_t code) {
  // Twice the magnitudes 0 1 2 3 4 6 8 12 fit a nibble each.
  const float magnitude = 0.5f * static_cast<float>((0xC8643210u >> (4 * (code & 7))) & 15);
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, magnitude) | (code & 8) << 28);
}

// The sign bit of a value as bit 3. A negative value that rounds to zero keeps it (code 8), as in ml_dtypes.
QN_BLOCK_CODE constexpr uint32_t e2m1_sign(float value) { return (__builtin_bit_cast(uint32_t, value) >> 28) & 8u; }

// Nearest code, ties to the even code, saturating at ±6. A NaN becomes a zero: callers refuse NaN before.
QN_BLOCK_CODE constexpr uint32_t f32_to_e2m1(float value) {
  const float a = value < 0 ? -value : value;
  // How many of the midpoints .25 .75 1.25 1.75 2.5 3.5 5 lie below; a tie goes to the even neighbour, hence > or >= in
  // turn. A sum instead of a chain, so that compilers vectorise it.
  const uint32_t magnitude = static_cast<uint32_t>(a > 0.25f) + static_cast<uint32_t>(a >= 0.75f) +
                             static_cast<uint32_t>(a > 1.25f) + static_cast<uint32_t>(a >= 1.75f) +
                             static_cast<uint32_t>(a > 2.5f) + static_cast<uint32_t>(a >= 3.5f) +
                             static_cast<uint32_t>(a > 5.0f);
  return e2m1_sign(value) | magnitude;
}

// The neighbour above in magnitude with probability (|value| − below) / (above − below), so that the expectation is the
// value; saturates at ±6. u is uniform in (0, 1); a value on the grid stays whatever u is.
QN_BLOCK_CODE constexpr uint32_t f32_to_e2m1_stochastic(float value, float u) {
  const float a = value < 0 ? -value : value;
  if (!(a < kE2M1Max)) return e2m1_sign(value) | 7u;
  // The spacing of the codes at a (.5, 1, 2) and the code whose value is zero spacings: the rest is exact arithmetic.
  const float inverse_step = a < 2.0f ? 2.0f : a < 4.0f ? 1.0f : 0.5f;
  const uint32_t base = a < 2.0f ? 0u : a < 4.0f ? 2u : 4u;
  const float steps = a * inverse_step;
  const auto below = static_cast<uint32_t>(steps);
  const uint32_t up = u < steps - static_cast<float>(below) ? 1u : 0u;
  return e2m1_sign(value) | (base + below + up);
}

QN_BLOCK_CODE constexpr uint8_t pack_e2m1(uint32_t even, uint32_t odd) {
  return static_cast<uint8_t>(even | (odd << 4));
}

static_assert(pack_e2m1(f32_to_e2m1(0.5f), f32_to_e2m1(-6.0f)) == 0xF1, "the worked example");
static_assert(e2m1_to_f32(0xF1 & 15) == 0.5f && e2m1_to_f32(0xF1 >> 4) == -6.0f, "low nibble = even column");
static_assert(f32_to_e2m1(0.25f) == 0 && f32_to_e2m1(0.75f) == 2 && f32_to_e2m1(5.0f) == 6, "ties go to the even code");

// --- E4M3 (fn): bias 7, no infinities, 0x7F and 0xFF are the only NaNs, largest 448, smallest subnormal 2^-9 --------

QN_BLOCK_CODE constexpr float e4m3_to_f32(uint8_t bits) {
  const uint32_t exponent = (bits >> 3) & 15u, mantissa = bits & 7u;
  float magnitude = 0;
  if (exponent == 15 && mantissa == 7) {
    magnitude = __builtin_bit_cast(float, 0x7fc00000u);
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    magnitude = __builtin_bit_cast(float, ((exponent + 120) << 23) | (mantissa << 20));
  }
  return (bits & 0x80) ? -magnitude : magnitude;
}

// To nearest, ties to even, saturating at ±448 (infinities too); NaN stays NaN.
QN_BLOCK_CODE constexpr uint8_t f32_to_e4m3(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value), sign = (bits >> 24) & 0x80u,
                 magnitude = bits & 0x7fffffffu;
  uint32_t code = 0;
  if (magnitude > 0x7f800000u) {
    code = 0x7f;
  } else if (magnitude >= 0x43e00000u) {  // 448
    code = 0x7e;
  } else if (magnitude < 0x3c800000u) {  // 2^-6: subnormal, so let the adder round at 2^-9, the spacing of f32 at 2^14
    code = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude) + 0x1p14f) - 0x46800000u;
  } else {
    code = ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - (120u << 3);
  }
  return static_cast<uint8_t>(sign | code);
}

// The smallest E4M3 number >= value, for value >= 0; saturates at 448.
QN_BLOCK_CODE constexpr uint8_t f32_to_e4m3_up(float value) {
  const uint8_t nearest = f32_to_e4m3(value);
  return e4m3_to_f32(nearest) < value && nearest < 0x7e ? static_cast<uint8_t>(nearest + 1) : nearest;
}

static_assert(f32_to_e4m3(448.0f) == 0x7e && e4m3_to_f32(0x7e) == kE4M3Max && f32_to_e4m3(1e30f) == 0x7e);
static_assert(e4m3_to_f32(1) == 0x1p-9f && f32_to_e4m3(0x1p-10f) == 0 && f32_to_e4m3(0x1.8p-9f) == 2, "ties to even");
static_assert(f32_to_e4m3_up(0x1p-30f) == 1 && f32_to_e4m3_up(1.0f) == f32_to_e4m3(1.0f));

// --- A block: 16 columns of one row ----------------------------------------------------------------------------------

enum class Rounding : uint8_t { kNearestEven, kStochastic };
enum class ScaleRule : uint8_t {
  kAmax,         // scale = e4m3_nearest(amax / 6 / global)
  kFourOverSix,  // the better of amax/6 and amax/4 by squared error of the block, nearest-even codes (arXiv 2512.02010)
  kAmaxUp,  // scale = e4m3 rounded up from amax / 6 / global: nothing saturates, so stochastic rounding is unbiased
};

// The codes of `t` (the block divided by the global scale) under an E4M3 scale. Scale 0 gives codes 0: the block
// decodes to zeros, and its signs are lost.
struct BlockCodes {
  uint32_t code[kBlockSize];
};
QN_BLOCK_CODE inline BlockCodes nvfp4_block_codes(const float* t, uint8_t scale) {
  const float s = e4m3_to_f32(scale);
  BlockCodes out;
  for (int i = 0; i < kBlockSize; ++i) out.code[i] = s > 0 ? f32_to_e2m1(t[i] / s) : 0u;
  return out;
}

// Sum over the columns of (e2m1(code) · scale − t)², f32 in a fixed tree: column i + 8 onto i, then i + 4, i + 2, i
// + 1.
QN_BLOCK_CODE inline float nvfp4_block_error(const float* t, uint8_t scale) {
  const float s = e4m3_to_f32(scale);
  const BlockCodes codes = nvfp4_block_codes(t, scale);
  float sum[kBlockSize];
  for (int i = 0; i < kBlockSize; ++i) {
    const float error = e2m1_to_f32(codes.code[i]) * s - t[i];
    sum[i] = error * error;
  }
  for (int half = kBlockSize / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

// The E4M3 scale of a block with largest magnitude `amax`, divided by the global scale. amax = 0 gives 0: the
// block decodes to zeros, and sticky training grows such a scale like any other (amax > 6 · 0).
QN_BLOCK_CODE constexpr uint8_t nvfp4_amax_scale(float amax) { return f32_to_e4m3(amax / kE2M1Max); }
QN_BLOCK_CODE constexpr uint8_t nvfp4_amax_up_scale(float amax) {
  const uint8_t up = f32_to_e4m3_up(amax / kE2M1Max);
  // amax / 6 may have been rounded down; 6 · scale is exact.
  return e4m3_to_f32(up) * kE2M1Max < amax && up < 0x7e ? static_cast<uint8_t>(up + 1) : up;
}

QN_BLOCK_CODE inline uint8_t nvfp4_block_scale(const float* t, float amax, ScaleRule rule) {
  if (rule == ScaleRule::kAmaxUp) return nvfp4_amax_up_scale(amax);
  const uint8_t six = nvfp4_amax_scale(amax);
  if (rule == ScaleRule::kAmax) return six;
  const uint8_t four = f32_to_e4m3(amax / 4.0f);
  return nvfp4_block_error(t, four) < nvfp4_block_error(t, six) ? four : six;
}

// Where the stochastic bits of element (row, column) come from: element index = (first_row + row) · cols + column.
struct RandomKey {
  uint64_t seed = 0;
  uint32_t parameter = 0;
  uint32_t step = 0;
  RandomStream stream = RandomStream::kUser;
  int64_t first_row = 0;
};

// Quantises x f32[16], all finite, whose first element has index `element` (a multiple of 16; read when stochastic).
// Shared by the CPU and CUDA, so that both give the same bytes.
QN_BLOCK_CODE inline void quantize_nvfp4_block(uint8_t* codes, uint8_t* scale, const float* x, float global_scale,
                                               Rounding rounding, ScaleRule rule, const RandomKey& random,
                                               int64_t element) {
  float t[kBlockSize], amax = 0;
  for (int i = 0; i < kBlockSize; ++i) {
    t[i] = x[i] / global_scale;
    const float a = t[i] < 0 ? -t[i] : t[i];
    amax = a > amax ? a : amax;
  }
  *scale = nvfp4_block_scale(t, amax, rule);
  BlockCodes out;
  if (rounding == Rounding::kNearestEven) {
    out = nvfp4_block_codes(t, *scale);
  } else {
    const float s = e4m3_to_f32(*scale);
    for (int quad = 0; quad < kBlockSize / 4; ++quad) {
      const PhiloxWords words =
          random_words(random.seed, element / 4 + quad, random.parameter, random.step, random.stream);
      for (int i = 0; i < 4; ++i) {
        const int at = quad * 4 + i;
        out.code[at] = s > 0 ? f32_to_e2m1_stochastic(t[at] / s, uniform(words.w[i])) : 0u;
      }
    }
  }
  for (int j = 0; j < kBlockSize / 2; ++j) codes[j] = pack_e2m1(out.code[2 * j], out.code[2 * j + 1]);
}

// --- A tensor --------------------------------------------------------------------------------------------------------

struct QuantizeArgs {
  uint8_t* codes;   // out u8[N, K/2]
  uint8_t* scales;  // out e4m3[N, K/16]
  const float* x;   // in f32[N, K], finite: else Error(kNonFiniteWeight) naming the first bad row and column
  int64_t N, K;     // K % 16 == 0
  float global_scale;
  Rounding rounding;
  ScaleRule scale_rule;
  RandomKey random;  // read when rounding is stochastic
};

// The two-level global scale for a tensor whose largest magnitude is amax: the smallest power of two >= amax / (448·6),
// and at least 2^-126. A power of two changes no mantissa, so rescaling never re-rounds. amax = 0 gives 1.
// Error(kNonFiniteWeight) for an amax that is not finite; the second form, for the device, is for those that are.
float two_level_global_scale(float amax);
QN_BLOCK_CODE constexpr float finite_two_level_global_scale(float amax) {
  if (amax == 0) return 1.0f;
  // 448·6 = 1.3125 · 2^11, and 1.3125 has the mantissa bits 0x280000.
  const uint32_t bits = __builtin_bit_cast(uint32_t, amax);
  const int32_t exponent = static_cast<int32_t>(bits >> 23) - 11 + static_cast<int32_t>((bits & 0x7fffffu) > 0x280000u);
  return __builtin_bit_cast(float, static_cast<uint32_t>(exponent > 1 ? exponent : 1) << 23);
}
static_assert(finite_two_level_global_scale(2688.0f) == 1.0f && finite_two_level_global_scale(2688.5f) == 2.0f);
static_assert(finite_two_level_global_scale(1e-44f) == 0x1p-126f);

// Throws Error(kNonFiniteWeight) naming the first infinity or NaN of x f32[16], which begins at (row, column), if any.
void refuse_nonfinite_block(const float* x, int64_t row, int64_t column);

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
