// The arithmetic of sampling that the CPU and CUDA share bit for bit.
//
// A token's weight is its probability relative to the likeliest token's as a whole number of 2^-40, cut off: e^x by
// multiplications and additions that round one by one (no FMA on either side), then shifts. Sums of weights are exact,
// so that thresholds and the draw depend on no order. What is below 2^-40 of the likeliest token has weight 0 and is
// never drawn.
#pragma once

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/philox.h"

namespace qn {

constexpr int kWeightBits = 40;

// `logit` is at most `max`; `inverse_temperature` is inverse_of's.
QN_HOST_DEVICE inline uint64_t sample_weight(float logit, float max, float inverse_temperature) {
  // e^-32 is below 2^-46. Written so that NaN (−inf · 0) is taken as −32 too.
  const float scaled = (logit - max) * inverse_temperature;
  const float x = scaled > -32.0f ? scaled : -32.0f;
  // e^x = 2^n · e^r, |r| <= ln 2 / 2. Adding 1.5 · 2^23 rounds to a whole number; ln 2 in two parts, n · high is exact.
  const float n = (x * 0x1.715476p+0f + 0x1.8p+23f) - 0x1.8p+23f;
  const float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // p is in (0.7, 1.42): 24 bits of mantissa moved to where 1 is bit 40.
  const uint32_t bits = std::bit_cast<uint32_t>(p);
  const uint64_t mantissa = (bits & 0x7fffffu) | 0x800000u;
  const int shift = kWeightBits - 23 + static_cast<int>(bits >> 23) - 127 + static_cast<int>(n);
  return shift >= 0 ? mantissa << shift : mantissa >> -shift;
}

// Finite, so that the likeliest token's 0 · inverse is 0.
inline float inverse_of(float temperature) { return std::min(1 / temperature, FLT_MAX); }

// A clamp keeps what a division by a tiny penalty made infinite apart from a logit that was not finite.
QN_HOST_DEVICE inline float penalised_logit(float raw, float penalty) {
  const float value = raw > 0 ? raw / penalty : raw * penalty;
  return value > FLT_MAX ? FLT_MAX : value < -FLT_MAX ? -FLT_MAX : value;
}

QN_HOST_DEVICE inline uint64_t multiply_high(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

// top_p in (0, 1) as a fraction of 2^64, and the least weight that is that fraction of `total` or more.
inline uint64_t fraction_of(float top_p) { return static_cast<uint64_t>(static_cast<double>(top_p) * 0x1p64); }
QN_HOST_DEVICE inline uint64_t nucleus_weight(uint64_t fraction, uint64_t total) {
  const uint64_t needed = multiply_high(fraction, total) + (fraction * total != 0);
  return needed > 0 ? needed : 1;
}

// The least weight that min-p keeps; at least 1, so that what cannot be drawn need not be looked at.
inline uint64_t least_weight(float min_p) {
  const double least = std::ceil(static_cast<double>(min_p) * static_cast<double>(uint64_t{1} << kWeightBits));
  return std::max<uint64_t>(1, static_cast<uint64_t>(least));
}

// 64 random bits; the token whose weight holds multiply_high(bits, total) in the running sum by ids is drawn.
QN_HOST_DEVICE inline uint64_t draw_bits(uint64_t seed, int64_t position) {
  const PhiloxWords words = random_words(seed, position, 0, 0, RandomStream::kSample);
  return static_cast<uint64_t>(words.w[0]) << 32 | words.w[1];
}

}  // namespace qn
