// The three passes of a softmax over one row of logits, for cross entropy and sampling.
//   max      the largest value, −inf for an empty row. A NaN never wins: it reaches exp_sum and is noticed there.
//   exp_sum  Σ e^(x − shift), summed in double in an order fixed by the instruction set
//   scale    x ← e^(x − lse) · weight
// e^x is within 1 ulp in every variant.
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace qn {

struct SoftmaxRow {
  float (*max)(const float* x, int64_t count);
  double (*exp_sum)(const float* x, int64_t count, float shift);
  void (*scale)(float* x, int64_t count, float lse, float weight);
};

const SoftmaxRow& softmax_row(Isa isa);

}  // namespace qn
