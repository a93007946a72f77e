// E2M1 codes as operands of bf16 tensor-core products. For .cu files alone.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace qn {

// A code decodes to e2m1 · kE2M1Unit, 0.5 as a bf16 subnormal, which tensor cores multiply exactly.
constexpr float kE2M1Unit = 0x1p-126f;

// Eight codes as bf16 pairs (0, 4), (1, 5), (2, 6), (3, 7), low half first. The three bits of a magnitude become the
// two lowest exponent bits and the highest mantissa bit, the fourth bit the sign; the signs' stray bits fall under the
// mask of magnitudes, which hides them. In assembly because the compiler would mask each sign by itself, two
// instructions more, of those that have half the rate.
__device__ __forceinline__ uint32_t signs_of(uint32_t q, uint32_t mask) {
  uint32_t signs;
  asm("and.b32 %0, %1, %2;" : "=r"(signs) : "r"(q), "r"(mask));
  return signs;
}
__device__ __forceinline__ uint32_t merge_signs(uint32_t magnitudes, uint32_t signs) {
  uint32_t merged;
  // where the mask: magnitudes, else signs
  asm("lop3.b32 %0, %1, 0x01c001c0, %2, 0xb8;" : "=r"(merged) : "r"(signs), "r"(magnitudes));
  return merged;
}
__device__ __forceinline__ uint4 e2m1x8_to_bf16(uint32_t q) {
  const uint32_t odd = signs_of(q, 0x80808080u), even = signs_of(q, 0x08080808u);
  return {merge_signs(q << 6, even << 12), merge_signs(q << 2, odd << 8), merge_signs(q >> 2, even << 4),
          merge_signs(q >> 6, odd)};
}

// Two neighbouring E4M3 bytes of `word`, kFirst and kFirst + 1, never negative, as f32 scale · kE4M3Unit: a byte is a
// half-precision number in the fields below the sign, subnormals included.
constexpr float kE4M3Unit = 0x1p-8f;
template <int kFirst>
__device__ __forceinline__ float2 decode_e4m3x2(uint32_t word) {
  uint32_t halves = __byte_perm(word, 0, (kFirst << 4) | ((kFirst + 1) << 12) | 0x0404) >> 1;
  float2 scales;
  asm("{\n.reg .f16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
      : "=f"(scales.x), "=f"(scales.y)
      : "r"(halves));
  return scales;
}

__device__ __forceinline__ uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
  const __nv_bfloat162 product =
      __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}
__device__ __forceinline__ uint4 multiply_bf16x8(uint4 a, uint32_t b) {
  return {multiply_bf16x2(a.x, b), multiply_bf16x2(a.y, b), multiply_bf16x2(a.z, b), multiply_bf16x2(a.w, b)};
}

// Two E4M3 bytes, never negative, in bits 0 .. 7 and 16 .. 23, as bf16x2 of scale · kWeightUnit / kE2M1Unit. A byte
// shifted to bf16's fields is scale · 2^-120, subnormals included; one factor of 2^238 does not exist, so two multiply
// it. Times a decoded code, a weight is weight · kWeightUnit, exactly.
constexpr float kWeightUnit = 0x1p-8f;
__device__ __forceinline__ uint32_t e4m3_to_bf16x2(uint32_t bytes) {
  return multiply_bf16x2(multiply_bf16x2(bytes << 4, 0x7f007f00u), 0x77007700u);
}

// sum[16, 8] = add[16, 8] + a[16, 16] · b[16, 8], the operands as mma.m16n8k16 deals them to lanes: with g = lane / 4
// and q = lane % 4, a = {(g, k), (g + 8, k), (g, k + 8), (g + 8, k + 8)} and b = {(k, g), (k + 8, g)} for the pair
// k = 2q, 2q + 1, and sums {(g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1)}.
__device__ __forceinline__ float4 multiply_tiles(uint4 a, uint2 b, float4 add) {
  float4 sum;
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(sum.x), "=f"(sum.y), "=f"(sum.z), "=f"(sum.w)
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "f"(add.x), "f"(add.y), "f"(add.z), "f"(add.w));
  return sum;
}

}  // namespace qn
