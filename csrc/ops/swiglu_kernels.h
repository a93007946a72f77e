// Instruction-set variants of ops/swiglu.h over one contiguous piece. e^x is within 1 ulp (ops/exp_avx512.h).
#pragma once

#include <cstdint>

namespace qn {

void swiglu_avx2(float* y, const float* gate, const float* up, int64_t count);
void swiglu_avx512(float* y, const float* gate, const float* up, int64_t count);
void swiglu_backward_avx2(float* dgate, float* dup, const float* dy, const float* gate, const float* up, int64_t count);
void swiglu_backward_avx512(float* dgate, float* dup, const float* dy, const float* gate, const float* up,
                            int64_t count);
void swiglu_neon(float* y, const float* gate, const float* up, int64_t count);
void swiglu_backward_neon(float* dgate, float* dup, const float* dy, const float* gate, const float* up, int64_t count);

}  // namespace qn
