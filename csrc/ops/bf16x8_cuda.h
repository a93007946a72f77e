// Eight neighbouring values as one 16-byte access (f32: two), f32 in registers. For .cu files alone.
#pragma once

#include <cstdint>

namespace qn {

constexpr int kLaneValues = 8;

struct Eight {
  float value[kLaneValues];
};

// A bf16 is the upper half of the f32 that it equals.
__device__ inline Eight bf16x8_to_f32(const uint4& bits) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  Eight eight;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    eight.value[2 * i] = __uint_as_float(words[i] << 16);
    eight.value[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
  return eight;
}

// Two values to bf16, nearest even, the first in the lower half.
__device__ inline uint32_t f32_to_bf16x2(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

__device__ inline uint4 f32_to_bf16x8(const Eight& eight) {
  const float* v = eight.value;
  return make_uint4(f32_to_bf16x2(v[0], v[1]), f32_to_bf16x2(v[2], v[3]), f32_to_bf16x2(v[4], v[5]),
                    f32_to_bf16x2(v[6], v[7]));
}

__device__ inline uint4 load_bits8(const uint16_t* at) { return *reinterpret_cast<const uint4*>(at); }
__device__ inline Eight load8(const uint16_t* at) { return bf16x8_to_f32(load_bits8(at)); }
__device__ inline void store8(uint16_t* at, const Eight& eight) {
  *reinterpret_cast<uint4*>(at) = f32_to_bf16x8(eight);
}

__device__ inline Eight load8(const float* at) {
  const float4 low = reinterpret_cast<const float4*>(at)[0], high = reinterpret_cast<const float4*>(at)[1];
  return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}
__device__ inline void store8(float* at, const Eight& eight) {
  const float* v = eight.value;
  reinterpret_cast<float4*>(at)[0] = make_float4(v[0], v[1], v[2], v[3]);
  reinterpret_cast<float4*>(at)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

// One value at a time, where a row is not aligned.
__device__ inline float load1(const uint16_t* at) { return __uint_as_float(static_cast<uint32_t>(*at) << 16); }
__device__ inline void store1(uint16_t* at, float value) {
  *at = static_cast<uint16_t>(f32_to_bf16x2(value, 0.0f) & 0xffffu);
}

}  // namespace qn
