// y = silu(gate) · up, silu(z) = z / (1 + e^−z) (Shazeer 2020, eq. 6). All f32[count]; y may alias gate or up.
//
// backward, with s = σ(gate):  dgate = dy · up · s · (1 + gate · (1 − s)),  dup = dy · gate · s
// dgate may alias gate, dup may alias up, neither aliases dy.
#pragma once

#include "core/cpu.h"
#include "core/cuda_device.h"

namespace qn {

void swiglu_cpu(float* y, const float* gate, const float* up, int64_t count, const Cpu& cpu);
void swiglu_backward_cpu(float* dgate, float* dup, const float* dy, const float* gate, const float* up, int64_t count,
                         const Cpu& cpu);

// On CUDA all are bf16[count], on the device and 16-byte aligned, computed in f32 and rounded once; aliasing as above.
// e^x is the hardware's (relative error 2^-19 at |gate| = 80), far below what bf16 keeps.
void swiglu_cuda(uint16_t* y, const uint16_t* gate, const uint16_t* up, int64_t count, CudaStream stream);
void swiglu_backward_cuda(uint16_t* dgate, uint16_t* dup, const uint16_t* dy, const uint16_t* gate, const uint16_t* up,
                          int64_t count, CudaStream stream);

}  // namespace qn
