// Sums and maxima over a group of kLanes neighbouring threads, a power of two: part of a warp, or a whole block. The
// order is fixed, so two runs give equal bytes, and every thread of the group gets the same result. For .cu files
// alone.
#pragma once

namespace qn {

struct AddLanes {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct MaxLanes {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Both partners of an exchange combine the same two numbers, so that all lanes agree. The whole warp must call it.
template <int kLanes, typename Combine>
__device__ float reduce_lanes(float value, Combine combine) {
  static_assert(kLanes <= 32);
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, step, kLanes));
  }
  return value;
}

// A group larger than a warp is the whole block; every thread must call it. One static array serves every call of a
// kernel with the same Combine.
template <int kLanes, typename Combine>
__device__ float reduce_group(float value, Combine combine) {
  if constexpr (kLanes <= 32) {
    return reduce_lanes<kLanes>(value, combine);
  } else {
    constexpr int kWarps = kLanes / 32;
    __shared__ float warps[kWarps];
    value = reduce_lanes<32>(value, combine);
    __syncthreads();  // the readers of the call before are done
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    return reduce_lanes<kWarps>(warps[threadIdx.x % kWarps], combine);
  }
}

}  // namespace qn
