// Whole tensors on CUDA, element by element: conversions, fills, sums and checks. Pointers on the device; activations
// and f32 16-byte aligned unless said otherwise. Nothing is allocated and nothing waits; two runs give equal bytes.
#pragma once

#include <cstdint>

#include "core/cuda_device.h"

namespace qn {

// f32[count] ← value.
void fill_cuda(float* x, float value, int64_t count, CudaStream stream);
// Exact.
void widen_bf16_cuda(float* y, const uint16_t* x, int64_t count, CudaStream stream);
// To nearest even.
void narrow_bf16_cuda(uint16_t* y, const float* x, int64_t count, CudaStream stream);
// f16 to f32 (exact) and to bf16 (nearest even).
void widen_f16_cuda(float* y, const uint16_t* x, int64_t count, CudaStream stream);
void f16_to_bf16_cuda(uint16_t* y, const uint16_t* x, int64_t count, CudaStream stream);
// sum += x.
void add_cuda(float* sum, const float* x, int64_t count, CudaStream stream);

// *flag ← 1 when an element is infinite or NaN; otherwise it stays.
void find_non_finite_cuda(uint32_t* flag, const float* x, int64_t count, CudaStream stream);
void find_non_finite_bf16_cuda(uint32_t* flag, const uint16_t* x, int64_t count, CudaStream stream);

}  // namespace qn
