// How values differ from what they were.
//
//   value_errors   now f32[count], old f32[count], finite → Σ (now − old)², Σ old², max |now − old|
//
// The difference is taken in f32, its square and both sums in f64. Element i belongs to the running sum i % 8, and the
// eight are added in order at the end, so every instruction set gives the same bits. Reads 8 B an element; no scratch.
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace qn {

struct ValueErrors {
  double squared_error = 0, squares = 0;
  float largest_error = 0;

  void add(const ValueErrors& other);
};

ValueErrors value_errors(const float* now, const float* old, int64_t count, Isa isa);

}  // namespace qn
