// Normal deviates by inversion: z = Φ⁻¹((word + ½) / 2³²), one Philox word each.
//
// The bytes must be the same on every machine, and libm's log differs in its last bit from one to the next. So Φ⁻¹ is
// Wichura's rational approximation (Algorithm AS 241, PPND7, Applied Statistics 37, 1988; relative error 1e-7) in
// doubles, with a logarithm of our own: only +, −, ·, / and sqrt, which IEEE 754 defines to the last bit, and none of
// it contracted. Shared by the CPU and CUDA.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/philox.h"

namespace qn {

// Beyond every draw: the outermost word gives |z| = 6.34.
constexpr float kLargestNormal = 6.4f;

// ln(x) for positive normal x, to about 1e-16: x = 2^e · m with m in [√½, √2), ln m = 2 artanh((m − 1) / (m + 1)).
QN_HOST_DEVICE inline double natural_log(double x) {
  const auto bits = __builtin_bit_cast(uint64_t, x);
  // 0x3fe6a09e667f3bcd is √½: taking its bits off first puts the break between exponents there.
  const auto shifted = static_cast<int64_t>(bits - 0x3fe6a09e667f3bcdull);
  const int64_t exponent = shifted >> 52;
  const double m = __builtin_bit_cast(double, bits - (static_cast<uint64_t>(exponent) << 52));
  const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
  double series = 0;
  for (int n = 21; n >= 1; n -= 2) series = series * s2 + 1.0 / n;
  return static_cast<double>(exponent) * 0.693147180559945309417 + 2.0 * s * series;
}

QN_HOST_DEVICE inline double normal_tail(double p) {
  double r = sqrt(-natural_log(p));
  if (r <= 5.0) {
    r -= 1.6;
    return (((1.7023821103E-1 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777) /
           ((1.2021132975E-1 * r + 7.3700164250E-1) * r + 1.0);
  }
  r -= 5.0;
  return (((1.7337203997E-2 * r + 4.2868294337E-1) * r + 3.0812263860) * r + 6.6579051150) /
         ((1.2258202635E-2 * r + 2.4197894225E-1) * r + 1.0);
}

QN_HOST_DEVICE inline double normal_from_word(uint32_t word) {
  const double p = (static_cast<double>(word) + 0.5) * 0x1p-32, q = p - 0.5;
  if (q >= -0.425 && q <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * (((5.9109374720E+1 * r + 1.5929113202E+2) * r + 5.0434271938E+1) * r + 3.3871327179) /
           (((6.7187563600E+1 * r + 7.8757757664E+1) * r + 1.7895169469E+1) * r + 1.0);
  }
  return q < 0 ? -normal_tail(p) : normal_tail(1.0 - p);
}

// Elements 4·quad … 4·quad + 3 of a parameter: Normal(0, stddev), rounded to f32 once.
QN_HOST_DEVICE inline void draw_normal_quad(float* out, uint64_t seed, uint32_t parameter, double stddev,
                                            int64_t quad) {
  const PhiloxWords words = random_words(seed, quad, parameter, 0, RandomStream::kInitialize);
  for (int i = 0; i < 4; ++i) out[i] = static_cast<float>(stddev * normal_from_word(words.w[i]));
}

}  // namespace qn
