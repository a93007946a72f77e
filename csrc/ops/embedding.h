// x[t] = w[ids[t]]: rows of w[V, H] in any storage, decoded to f32[T, H]. Ids are in [0, V): the caller checked.
//
// backward over a slice of the vocabulary: dw[id − row_begin] += dx[t] for every t whose id lies in
// [row_begin, row_begin + row_count). Deterministic: t ascending for each row.
#pragma once

#include "core/cpu.h"
#include "core/cuda_device.h"
#include "ops/weight_view.h"

namespace qn {

void embedding_cpu(float* x, const WeightView& w, const int32_t* ids, int64_t T, const Cpu& cpu);
void embedding_backward_cpu(float* dw, const float* dx, const int32_t* ids, int64_t T, int64_t H, int64_t row_begin,
                            int64_t row_count, const Cpu& cpu);

// On CUDA x and dx are bf16[T, H], the view's and all other pointers are on the device, 16-byte aligned (codes 8-byte);
// H % 8 == 0. x is the CPU's value rounded to bf16; dw stays f32 and gets the bytes that the CPU gives for this dx.
void embedding_cuda(uint16_t* x, const WeightView& w, const int32_t* ids, int64_t T, CudaStream stream);
void embedding_backward_cuda(float* dw, const uint16_t* dx, const int32_t* ids, int64_t T, int64_t H, int64_t row_begin,
                             int64_t row_count, CudaStream stream);

}  // namespace qn
