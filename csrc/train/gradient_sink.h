// Where backward() delivers weight gradients: into storage, or straight into the optimizer.
#pragma once

#include <functional>
#include <vector>

#include "model/engine.h"

namespace qn {

class GradientSink {
 public:
  // Adds rows [row_begin, row_begin + row_count) of the gradient to dw[row_count, cols] (accumulate) or overwrites it,
  // and takes dw.squares.
  using Produce = std::function<void(int64_t row_begin, int64_t row_count, GradientRows dw, bool accumulate)>;

  virtual ~GradientSink() = default;
  // Called once per matrix and backward pass, after every use of its value in that pass. Rows of the embedding are
  // asked for in f32, others in any form the device has.
  virtual void matrix(Parameter& parameter, const Produce& produce) = 0;
  struct Vector {
    Parameter* parameter;
    const float* dw;  // f32[cols] on the device
  };
  // Called once a backward pass, after every matrix.
  virtual void vectors(const std::vector<Vector>& vectors) = 0;
};

}  // namespace qn
