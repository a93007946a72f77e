// What one element, one block of 16 or one row of ops/adamw.h goes through, in terms of ops/adamw_math.h: the formulas
// that the CPU's rows (adamw_moments.h, adamw_rows.h) and CUDA's (adamw.cu) put together, each in its own loops; what
// packed moments and NVFP4 weights go through is in ops/adamw_packed.h.
#pragma once

#include "ops/adamw.h"
#include "ops/adamw_math.h"

namespace qn::adamw {

// --- Plain moments of one element -----------------------------------------------------------------------------------

struct MomentRates {
  float a, b, eps, gradient_scale;
};
QN_ADAMW_FN MomentRates moment_rates(const AdamwArgs& args) { return {args.a, args.b, args.eps, args.gradient_scale}; }

// m and v in and out; returns u.
QN_ADAMW_FN float step_moments(float& m, float& v, float g, const MomentRates& rates) {
  const float scaled = g * rates.gradient_scale;
  m += rates.a * (scaled - m);
  v += rates.b * (scaled * scaled - v);
  return m / (square_root(v) + rates.eps);
}

// --- Dense weights --------------------------------------------------------------------------------------------------

// A step of zero keeps a negative zero negative.
QN_ADAMW_FN float stepped(float x, float keep, float rate, float u) {
  const float next = x * keep - rate * u;
  return next == x ? x : next;
}

QN_ADAMW_FN float bf16_value(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }
// Finite f16.
QN_ADAMW_FN float f16_value(uint32_t bits) {
  const float small = static_cast<float>(static_cast<int32_t>(bits & 0x3ffu)) * 0x1p-24f;
  const float normal = float_of(((bits & 0x7fffu) << 13) + (112u << 23));
  return float_of(bits_of((bits & 0x7c00u) == 0 ? small : normal) | ((bits & 0x8000u) << 16));
}

// --- First moment, and gradients: value = code · e4m3(scale) · level, level a power of two for the row --------------

QN_ADAMW_FN float largest_code(MomentFormat format) { return format == MomentFormat::kNvfp4 ? 6.0f : 127.0f; }
QN_ADAMW_FN float linear_level(float row_amax, float largest) {
  return power_of_two_at_least(row_amax / (448.0f * largest));
}
// Rounded up, so that nothing saturates.
QN_ADAMW_FN uint32_t linear_scale(float block_amax, float largest, float level) {
  return e4m3_round_up(block_amax / (largest * level));
}
// What magnitudes are divided by: S, or 1 where everything is zero.
QN_ADAMW_FN float divisor_of(float S) { return S > 0 ? S : 1.0f; }

QN_ADAMW_FN uint32_t linear_e2m1(float x, float divisor, uint32_t word) {
  const float a = smaller(magnitude_of(x) / divisor, 6.0f);
  return stochastic_e2m1(a, word) | ((bits_of(x) >> 28) & 8u);
}
QN_ADAMW_FN int8_t linear_int8(float x, float divisor, uint32_t word) {
  const float a = smaller(magnitude_of(x) / divisor, 127.0f);
  const auto whole = static_cast<int32_t>(a);
  const int32_t q = whole + (rounds_up(a - static_cast<float>(whole), word) ? 1 : 0);
  return static_cast<int8_t>(x < 0 ? -q : q);
}

// --- Second moment: log2 v = centre + code · S, S a power of two ----------------------------------------------------

constexpr int kOctaves = 10;  // second-moment scales 2^-6 .. 2^3
constexpr int kFirstOctave = -6;
constexpr float kOctavesBelowCentre = 12.0f;  // v is stored as at least 2^(centre − 12)
constexpr float kSmallestV = 0x1p-80f, kLargestV = 0x1p110f;

// The scale byte of 2^(kFirstOctave + k): exponent field (kFirstOctave + k + 7), mantissa 0. Zero: nothing stored yet.
QN_ADAMW_FN uint8_t octave_code(int k) { return static_cast<uint8_t>((kFirstOctave + k + 7) << 3); }
QN_ADAMW_FN int octave_index(uint8_t code) { return (code >> 3) - 7 - kFirstOctave; }

// --- Weights in NVFP4 -----------------------------------------------------------------------------------------------

// The E2M1 code of x under a scale that sticky_scale() chose. A zero keeps the sign bit of the old code.
QN_ADAMW_FN float sticky_inverse(uint32_t scale) { return scale > 0 ? inverse_of(e4m3_value(scale)) : 0.0f; }
template <bool kStochastic>
QN_ADAMW_FN uint32_t sticky_code(float x, uint32_t old_code, float inverse, float limit, float boost, uint32_t draw) {
  const float magnitude = magnitude_of(x);
  const float stretched = magnitude + larger(magnitude - limit, 0.0f) * boost;
  const uint32_t position = e2m1_position(stretched, inverse);
  const uint32_t index = (position * 4 + (kStochastic ? draw : even_draw(position))) >> 24;
  return index | (index == 0 ? old_code & 8u : e2m1_sign_of(x));
}

// A residual decodes under an eighth of the global scale.
constexpr float kResidualUnit = 0.125f;

}  // namespace qn::adamw
