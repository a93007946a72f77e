// SwiGLU of one element on CUDA, the same bits in every kernel that has it. For .cu files alone.
#pragma once

namespace qn {

// Fast exponential and division keep the kernels below a third of the issue slots. e^−z may overflow to infinity: the
// quotient is then 0, the limit.
__device__ inline float sigmoid(float z) { return __fdividef(1.0f, 1.0f + __expf(-z)); }

__device__ inline float swiglu_value(float gate, float up) { return gate * sigmoid(gate) * up; }

}  // namespace qn
