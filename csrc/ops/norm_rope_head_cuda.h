// RMSNorm and rotation of one query or key head, so that every kernel that does it gives the same bits. A head of D
// columns belongs to kLanes neighbouring lanes: each has the eight columns from 8·lane (`low`) and their partners from
// D/2 + 8·lane (`high`), zeros past D/2. For .cu files alone.
#pragma once

#include "ops/bf16x8_cuda.h"
#include "ops/group_reduce_cuda.h"

namespace qn {

// 1 / √(mean(x²) + eps), f32 in fixed tree order. The whole warp must call it.
template <int kLanes>
__device__ __forceinline__ float inverse_rms_of_head(const Eight& low, const Eight& high, int64_t D, float eps) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) sum = fmaf(low.value[i], low.value[i], sum);
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) sum = fmaf(high.value[i], high.value[i], sum);
  sum = reduce_lanes<kLanes>(sum, AddLanes{});
  return 1.0f / sqrtf(sum / static_cast<float>(D) + eps);
}

__device__ __forceinline__ void norm_and_rotate(Eight& low, Eight& high, float inverse, const Eight& low_w,
                                                const Eight& high_w, const Eight& cosine, const Eight& sine) {
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const float x = low.value[i] * inverse * low_w.value[i], y = high.value[i] * inverse * high_w.value[i];
    low.value[i] = x * cosine.value[i] - y * sine.value[i];
    high.value[i] = y * cosine.value[i] + x * sine.value[i];
  }
}

}  // namespace qn
