// Eight neighbouring E2M1 codes, one 32-bit word, to f32 and back in a few instructions. For .cu files alone.
#pragma once

#include <cstdint>

namespace qn {

// Codes decode to e2m1 · 2^-126 and scales are taken as scale · 2^118, so that a product is 2^-8 of its value, exactly;
// whoever stores it repays.
constexpr float kE2m1ScaleFactor = 0x1p118f;
constexpr float kE2m1Repay = 256.0f;

// value[i] = e2m1(code i) · scale, where scale carries kE2m1ScaleFactor. Exact. The three bits of a magnitude become
// the two lowest exponent bits and the highest mantissa bit of a bf16 (code .5 is a subnormal), the fourth bit its
// sign; one word holds two bf16, which are the upper halves of the f32 that they equal. The shifted signs' stray bits
// lie under kMagnitude, which hides them.
__device__ __forceinline__ void decode_e2m1x8(float (&value)[8], uint32_t codes, float scale) {
  constexpr uint32_t kMagnitude = 0x01c001c0u;
  const uint32_t even = codes & 0x08080808u, odd = codes & 0x80808080u;
  const uint32_t magnitudes[4] = {codes << 6, codes << 2, codes >> 2, codes >> 6};
  const uint32_t signs[4] = {even << 12, odd << 8, even << 4, odd};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t pair = (magnitudes[i] & kMagnitude) | (signs[i] & ~kMagnitude);
    value[i] = __uint_as_float(pair << 16) * scale;
    value[i + 4] = __uint_as_float(pair & 0xffff0000u) * scale;
  }
}

__device__ __forceinline__ float fma_saturated(float a, float b, float c) {
  float d;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
  return d;
}

// Divides by one number many times: three instructions where an IEEE division takes ten, the same quotient. A product
// by the rounded reciprocal is off by under two units in the last place, and its exact remainder says by how much
// (Markstein, 1990). Checked for every mantissa of the dividend and the divisors that occur: 6 and 2 · E4M3. Quotients
// below 2^-100 may be off, dividends from 2^100 on are not for it.
struct Divisor {
  float value, reciprocal;
  __device__ explicit Divisor(float by) : value(by), reciprocal(1.0f / by) {}
  __device__ __forceinline__ float divide(float a) const {
    const float quotient = a * reciprocal;
    return __fmaf_rn(__fmaf_rn(-quotient, value, a), reciprocal, quotient);
  }
};

// kE2m1Bias + the magnitude of the nearest code to 2 · half, ties to even, for half >= 0: f32_to_e2m1() without
// comparisons. The codes' spacing doubles at 2 and at 4, so each of three pieces, clamped to its range, is rounded by
// adding it to a number whose unit in the last place is 1 and which is even there.
constexpr uint32_t kE2m1Bias = 0x4b400000u;  // 1.5 · 2^23
__device__ __forceinline__ uint32_t e2m1_magnitude(float half) {
  const float to_2 = fma_saturated(half, 1.0f, 0.0f), to_4 = fma_saturated(half, 1.0f, -1.0f),
              to_6 = fma_saturated(half, 1.0f, -2.0f);
  const float sum = __fmaf_rn(to_6, 1.0f, __fmaf_rn(to_4, 2.0f, __fmaf_rn(to_2, 4.0f, 0x1.8p23f)));
  return __float_as_uint(sum);
}

// The signs of eight values as bits 3, 7, .. 31, from their highest bytes: bytes i of `low` are of values 0 .. 3.
__device__ __forceinline__ uint32_t e2m1_signs(uint32_t low, uint32_t high) {
  const uint32_t even = __byte_perm(low, high, 0x6420), odd = __byte_perm(low, high, 0x7531);
  return (even >> 4 & 0x08080808u) | (odd & 0x80808080u);
}

}  // namespace qn
