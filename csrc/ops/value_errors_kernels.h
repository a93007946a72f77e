// Instruction-set variants of ops/value_errors.h: the eight running sums over count elements, a multiple of eight.
#pragma once

#include <cstdint>

namespace qn {

constexpr int kErrorSums = 8;

struct ErrorSums {
  double squared_error[kErrorSums] = {}, squares[kErrorSums] = {};
  float largest_error[kErrorSums] = {};
};

void add_errors_avx2(ErrorSums& sums, const float* now, const float* old, int64_t count);
void add_errors_avx512(ErrorSums& sums, const float* now, const float* old, int64_t count);

}  // namespace qn
