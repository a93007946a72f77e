// The scalar steps of ops/adamw.h: IEEE f32 operations, integer bits and nothing else, no branches that cost a
// vectoriser, internal linkage (files compiled for one instruction set include this). The same on a CPU and on CUDA.
#pragma once

#include <cstdint>

#include "core/philox.h"

#define QN_ADAMW_FN QN_HOST_DEVICE static inline

namespace qn::adamw {

QN_ADAMW_FN uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
QN_ADAMW_FN float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }
QN_ADAMW_FN float magnitude_of(float value) { return float_of(bits_of(value) & 0x7fffffffu); }
// b is a number; where a is none, b.
QN_ADAMW_FN float smaller(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}
QN_ADAMW_FN float larger(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}
// Rounded to nearest, as IEEE 754 wants it.
QN_ADAMW_FN float square_root(float value) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(value);
#else
  return __builtin_sqrtf(value);
#endif
}

// 1 / value in the same way.
QN_ADAMW_FN float inverse_of(float value) {
#if defined(__CUDA_ARCH__)
  return __frcp_rn(value);
#else
  return 1.0f / value;
#endif
}

// a · b + c, rounded once.
QN_ADAMW_FN float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// --- Random rounding ------------------------------------------------------------------------------------------------

// True with probability `fraction` in [0, 1], exactly never at 0 and always at 1: (word / 2^8 + ½) / 2^24 < fraction,
// arranged so that no operation rounds.
QN_ADAMW_FN bool rounds_up(float fraction, uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) - fraction * 0x1p24f < -0.5f;
}

// f32 to bf16 with the 16 dropped bits as the exact probability. Finite values only.
QN_ADAMW_FN uint16_t stochastic_bf16(float value, uint32_t word) {
  const uint32_t bits = bits_of(value);
  const uint32_t up = bits + (word >> 16);
  return static_cast<uint16_t>(((up & 0x7f800000u) == 0x7f800000u ? bits : up) >> 16);  // never up to infinity
}

// f32 to f16, saturating at 65504.
QN_ADAMW_FN uint16_t stochastic_f16(float value, uint32_t word) {
  const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u;
  const float a = smaller(magnitude_of(value), 65504.0f);
  // 13 dropped bits for normal results; below 2^-14 the grid is 2^-24.
  const uint32_t normal = ((bits_of(a) + (word >> 19)) >> 13) - (112u << 10);
  const float steps = smaller(a, 0x1p-14f) * 0x1p24f;
  const auto whole = static_cast<int32_t>(steps);
  const auto small = static_cast<uint32_t>(whole) + (rounds_up(steps - static_cast<float>(whole), word) ? 1u : 0u);
  const uint32_t magnitude = a < 0x1p-14f ? small : normal;
  return static_cast<uint16_t>(sign | (magnitude < 0x7bffu ? magnitude : 0x7bffu));
}

// --- E2M1 and E4M3 (format/nvfp4.h defines them; these are branchless forms) ----------------------------------------

// Magnitude of index 0..7: 0 .5 1 1.5 2 3 4 6.
QN_ADAMW_FN float e2m1_magnitude(uint32_t index) {
  return index < 4 ? 0.5f * static_cast<float>(static_cast<int32_t>(index)) : float_of((index << 22) + (126u << 23));
}
QN_ADAMW_FN float e2m1_value(uint32_t code) { return float_of(bits_of(e2m1_magnitude(code & 7)) | ((code & 8) << 28)); }

// a in [0, 6] = magnitude(index) + fraction · (magnitude(index + 1) − magnitude(index)), exactly.
QN_ADAMW_FN void split_e2m1(float a, uint32_t& index, float& fraction) {
  const float inverse_step = a < 2.0f ? 2.0f : (a < 4.0f ? 1.0f : 0.5f);
  const int32_t first = a < 2.0f ? 0 : (a < 4.0f ? 2 : 4);
  const float steps = a * inverse_step;
  const auto whole = static_cast<int32_t>(steps);
  fraction = steps - static_cast<float>(whole);
  index = static_cast<uint32_t>(whole + first);
}
// Where a · unit, cut at 6, lies among the codes: code · 2^22 + the fraction of the way to the next, which is what the
// bits of a · (unit · 2^-126) say, since E2M1 has one bit of mantissa and its subnormals end at 1; but without
// subnormal numbers, which slow CPUs down.
QN_ADAMW_FN uint32_t e2m1_position(float a, float unit) {
  const float t = smaller(a * unit, 6.0f);
  return t < 1.0f ? bits_of(fused(a, unit, 1.0f)) - 0x3f800000u : bits_of(t) - 0x3f000000u;
}
// Up exactly when the fraction and a draw of 24 bits carry: with the fraction as probability, never at 0.
QN_ADAMW_FN uint32_t rounded_e2m1(float a, uint32_t draw) { return (e2m1_position(a, 1.0f) * 4 + draw) >> 24; }
QN_ADAMW_FN uint32_t e2m1_sign_of(float x) { return (bits_of(x) >> 28) & 8u; }

QN_ADAMW_FN uint32_t stochastic_e2m1(float a, uint32_t word) {
  uint32_t index;
  float fraction;
  split_e2m1(a, index, fraction);
  return index + (rounds_up(fraction, word) ? 1u : 0u);
}
// The draw with which a position rounds to the nearest code, ties to the even one.
QN_ADAMW_FN uint32_t even_draw(uint32_t position) { return 0x7fffffu + (position >> 22 & 1u); }

constexpr uint32_t kLargestScale = 126;  // 448

// Value of a code in [0, 126].
QN_ADAMW_FN float e4m3_value(uint32_t code) {
#if defined(__CUDA_ARCH__)
  return float_of(code << 20) * 0x1p120f;  // the same: subnormal numbers become subnormal numbers
#else
  return code < 16 ? static_cast<float>(static_cast<int32_t>(code)) * 0x1p-9f : float_of((code + 960u) << 20);
#endif
}
// The smallest code whose value is >= x, at most 126. x >= 0.
QN_ADAMW_FN uint32_t e4m3_round_up(float x) {
  const float steps = smaller(x, 1.0f) * 512.0f;
  const auto whole = static_cast<int32_t>(steps);
  const auto small = static_cast<uint32_t>(whole + (static_cast<float>(whole) < steps ? 1 : 0));
  const uint32_t normal = ((bits_of(x) + 0xfffffu) >> 20) - 960u;
  const uint32_t code = x < 0x1p-5f ? small : normal;
  return code < kLargestScale ? code : kLargestScale;
}

// --- Sticky scales --------------------------------------------------------------------------------------------------

// The code whose scale is half, when there is one: then every E2M1 value up to 3 doubles to another E2M1 value.
QN_ADAMW_FN bool can_halve(uint32_t code) { return code >= 16 || (code >= 2 && (code & 1) == 0); }
QN_ADAMW_FN uint32_t halved(uint32_t code) { return code >= 16 ? code - 8 : code / 2; }

// A block's scale after its largest magnitude became amax, in units of the second level.
struct StickyScale {
  uint32_t code;
  // Where the scale grew by chance, magnitudes beyond 6 × the old scale are stretched to
  // 6 S + (1 + boost)(|x| − 6 S), so that the average over "stayed, cut at 6 S" and "grew" is x.
  float limit, boost;
};

// The scale moves only when it must (amax > 6 S: to the next code with probability (amax − 6 S) / (6 S⁺ − 6 S), or,
// when that exceeds 1, at once above amax / 6) or when it can without loss (amax <= 3 S).
QN_ADAMW_FN StickyScale sticky_scale(uint32_t code, float amax, uint32_t word, int32_t& saturated) {
  const float S = e4m3_value(code), limit = 6.0f * S;
  if (amax > limit) {
    saturated += amax > 6.0f * 448.0f ? 1 : 0;
    if (code >= kLargestScale) return {code, limit, 0.0f};
    const float excess = amax - limit, span = 6.0f * e4m3_value(code + 1) - limit;
    if (excess >= span) return {e4m3_round_up(amax / 6.0f), limit, 0.0f};
    if (!(uniform(word) * span < excess)) return {code, limit, 0.0f};
    return {code + 1, limit, span / excess - 1.0f};
  }
  return {amax <= 3.0f * S && can_halve(code) ? halved(code) : code, limit, 0.0f};
}

// The smallest power of two >= x, within [2^-100, 2^100].
QN_ADAMW_FN float power_of_two_at_least(float x) {
  const float bounded = smaller(larger(x, 0x1p-100f), 0x1p100f);
  return float_of((bits_of(bounded) + 0x7fffffu) & 0xff800000u);
}

// --- Octaves --------------------------------------------------------------------------------------------------------

// 2^x for x a multiple of 2^-7 in [-120, 120] (x is clamped): x = n + f, |f| <= ½, and the Taylor series of e^(f ln 2)
// up to the sixth power, relative error below 2e-7; powers of two are exact.
QN_ADAMW_FN float exp2_grid(float x) {
  const float bounded = smaller(larger(x, -120.0f), 120.0f);
  const int32_t n = static_cast<int32_t>(bounded + 1024.5f) - 1024;
  const float f = bounded - static_cast<float>(n);
  float p = 1.5403530393381608e-4f;
  p = p * f + 1.3333558146428443e-3f;
  p = p * f + 9.618129107628477e-3f;
  p = p * f + 5.550410866482158e-2f;
  p = p * f + 0.2402265069591007f;
  p = p * f + 0.6931471805599453f;
  p = p * f + 1.0f;
  return p * float_of(static_cast<uint32_t>(n + 127) << 23);
}

// log2 of a positive normal value, absolute error below 2e-7 + half an ulp: log2 m = 2/ln 2 · artanh((m − 1)/(m + 1))
// with m in [√½, √2), four terms of the series.
QN_ADAMW_FN float log2_near(float value) {
  const auto offset = static_cast<int32_t>(bits_of(value) - 0x3f3504f3u);
  const int32_t n = offset >> 23;
  const float m = float_of(bits_of(value) - (static_cast<uint32_t>(n) << 23));
  const float s = (m - 1.0f) / (m + 1.0f), q = s * s;
  float p = 0.4121985831111324f;
  p = p * q + 0.5770780163555853f;
  p = p * q + 0.9617966939259756f;
  p = p * q + 2.885390081777927f;
  return static_cast<float>(n) + s * p;
}

// |x| < 1000.
QN_ADAMW_FN float nearest_whole(float x) { return static_cast<float>(static_cast<int32_t>(x + 4096.5f) - 4096); }
QN_ADAMW_FN float nearest_quarter(float x) {
  return 0.25f * static_cast<float>(static_cast<int32_t>(4.0f * x + 4096.5f) - 4096);
}

}  // namespace qn::adamw
