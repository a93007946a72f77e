// The values of a table of rotary embedding, in the roundings of rope_table_cpu. For .cu files alone.
#pragma once

#include <cstdint>

namespace qn {

// base^(−2i/D)
__device__ inline float rope_frequency(int64_t i, int64_t D, float base) {
  const float exponent = static_cast<float>(2 * i) / static_cast<float>(D);
  return 1.0f / static_cast<float>(pow(static_cast<double>(base), static_cast<double>(exponent)));
}

__device__ inline void store_rope(float* cosine, float* sine, int32_t position, float frequency) {
  const float angle = static_cast<float>(position) * frequency;
  double exact_sine, exact_cosine;
  sincos(static_cast<double>(angle), &exact_sine, &exact_cosine);
  *cosine = static_cast<float>(exact_cosine);
  *sine = static_cast<float>(exact_sine);
}

}  // namespace qn
