// x[t] = w[ids[t]]: rows of w[V, H] in any storage, decoded to f32[T, H]. Ids are in [0, V): the caller checked.
//
// backward over a slice of the vocabulary: dw[id − row_begin] += dx[t] for every t whose id lies in
// [row_begin, row_begin + row_count). Deterministic: t ascending for each row.
#pragma once

#include "core/cpu.h"
#include "ops/weight_view.h"

namespace qn {

void embedding_cpu(float* x, const WeightView& w, const int32_t* ids, int64_t T, const Cpu& cpu);
void embedding_backward_cpu(float* dw, const float* dx, const int32_t* ids, int64_t T, int64_t H, int64_t row_begin,
                            int64_t row_count, const Cpu& cpu);

}  // namespace qn
