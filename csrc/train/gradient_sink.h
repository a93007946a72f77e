// Where backward() delivers weight gradients: into storage, or straight into the optimizer.
#pragma once

#include <functional>

#include "model/parameter.h"

namespace qn {

class GradientSink {
 public:
  // Adds rows [row_begin, row_begin + row_count) of the gradient to dw f32[row_count, cols] (accumulate) or overwrites
  // it.
  using Produce = std::function<void(int64_t row_begin, int64_t row_count, float* dw, bool accumulate)>;

  virtual ~GradientSink() = default;
  // Called once per matrix and backward pass, after every use of its value in that pass.
  virtual void matrix(Parameter& parameter, const Produce& produce) = 0;
  virtual void vector(Parameter& parameter, const float* dw) = 0;
};

}  // namespace qn
