// y = silu(gate) · up, silu(z) = z / (1 + e^−z) (Shazeer 2020, eq. 6). All f32[count]; y may alias gate or up.
//
// backward, with s = σ(gate):  dgate = dy · up · s · (1 + gate · (1 − s)),  dup = dy · gate · s
// dgate may alias gate, dup may alias up, neither aliases dy.
#pragma once

#include "core/cpu.h"

namespace qn {

void swiglu_cpu(float* y, const float* gate, const float* up, int64_t count, const Cpu& cpu);
void swiglu_backward_cpu(float* dgate, float* dup, const float* dy, const float* gate, const float* up, int64_t count,
                         const Cpu& cpu);

}  // namespace qn
