// The values of a parameter as f32 on the host, whatever its storage and wherever its buffers are.
#pragma once

#include "model/model.h"

namespace qn {

// The values that the forward pass uses: out f32[rows, cols].
void read_values(float* out, Model& model, const Parameter& parameter, const Cpu& cpu);

// Overwrites them: rounded to nearest, or quantised anew for NVFP4, whose residual becomes zeros. values
// f32[rows, cols]; Error(kNonFiniteWeight) for a NaN or infinity, before anything changed, and what
// refuse_frozen_form() throws.
void write_values(Model& model, Parameter& parameter, const float* values, const Cpu& cpu);

}  // namespace qn
