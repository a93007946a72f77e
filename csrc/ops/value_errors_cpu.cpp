#include "ops/value_errors.h"

#include <algorithm>
#include <cmath>

#include "ops/value_errors_kernels.h"

namespace qn {

namespace {

void add_errors(ErrorSums& sums, const float* now, const float* old, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t sum = i % kErrorSums;
    const float error = now[i] - old[i];
    sums.squared_error[sum] += double(error) * double(error);
    sums.squares[sum] += double(old[i]) * double(old[i]);
    sums.largest_error[sum] = std::max(sums.largest_error[sum], std::fabs(error));
  }
}

decltype(&add_errors) kernel_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return add_errors_avx512;
  if (isa == Isa::kAvx2) return add_errors_avx2;
#endif
  return add_errors;
}

}  // namespace

void ValueErrors::add(const ValueErrors& other) {
  squared_error += other.squared_error;
  squares += other.squares;
  largest_error = std::max(largest_error, other.largest_error);
}

ValueErrors value_errors(const float* now, const float* old, int64_t count, Isa isa) {
  ErrorSums sums;
  const int64_t whole = count - count % kErrorSums;
  kernel_for(isa)(sums, now, old, whole);
  add_errors(sums, now + whole, old + whole, count - whole);
  ValueErrors total;
  for (int i = 0; i < kErrorSums; ++i) total.add({sums.squared_error[i], sums.squares[i], sums.largest_error[i]});
  return total;
}

}  // namespace qn
