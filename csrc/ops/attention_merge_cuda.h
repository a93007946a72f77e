// The last step of attention whose keys were cut into splits: what each split found of a row becomes the row. For .cu
// files alone.
#pragma once

#include "ops/attention_tiles_cuda.h"

namespace qn {

// Results of splits: maximum (of unscaled scores) and sum f32[T·Q, splits, 2], and o f32[T·Q, splits, D], not yet
// divided by the sum.
struct AttentionPartials {
  float2* statistics;
  float* o;
  int64_t splits;

  AttentionPartials(float* scratch, int64_t rows, int64_t splits)
      : statistics(reinterpret_cast<float2*>(scratch)), o(scratch + 2 * rows * splits), splits(splits) {}
  static int64_t bytes(int64_t rows, int64_t splits, int64_t D) {
    return rows * splits * (D + 2) * static_cast<int64_t>(sizeof(float));
  }
};

// T queries from position `offset`, or *position, on, whose keys are cut every split_keys.
struct AttentionSplits {
  int64_t offset;
  const int32_t* position;
  int64_t T, split_keys;

  __device__ int64_t first() const { return position ? *position : offset; }
  __device__ int64_t count() const { return (first() + T + split_keys - 1) / split_keys; }
};

namespace {

constexpr int kMergeWarps = 8;
static_assert(32 * kMergeWarps >= kMaxCudaHeadDim);

// computes   y = Σ_split factor · o / Σ_split factor · sum,  factor = 2^((max − highest) · log2_scale), per row
// moves      read 4·T·Q·(D + 2) B a split (from L2), write 2·T·Q·D B                                bound: latency
// launch     grid T·Q, block 256, smem 8 KB                  warp w takes splits w, w + 8, …
// needs      D 1 .. 256
// numerics   f32, splits ascending within a warp, then warps ascending; y rounds once
// measured   not yet
__global__ void __launch_bounds__(32 * kMergeWarps)
    attention_merge_kernel(uint16_t* y, const AttentionPartials partials, const AttentionSplits cut, int64_t D,
                           float scale) {
  __shared__ float warp_o[kMergeWarps][kMaxCudaHeadDim], warp_sum_of[kMergeWarps];
  const int64_t row = blockIdx.x, splits = cut.count();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float2* statistics = partials.statistics + row * partials.splits;
  const float log2_scale = scale * kLog2E;

  // Every warp finds the maximum for itself: the statistics of a row are a few cache lines.
  float highest = -INFINITY;
  for (int64_t i = lane; i < splits; i += 32) highest = fmaxf(highest, statistics[i].x);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
  const float shift = softmax_shift(highest, log2_scale);

  float o[kLaneDims] = {}, sum = 0.0f;
#pragma unroll 4
  for (int64_t split = warp; split < splits; split += kMergeWarps) {
    const float2 part = statistics[split];
    const float factor = exp2_fast(fmaf(part.x, log2_scale, -shift));
    const float* from = partials.o + (row * partials.splits + split) * D;
    sum = fmaf(part.y, factor, sum);
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) {
      if (lane + 32 * i < D) o[i] = fmaf(from[lane + 32 * i], factor, o[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) warp_o[warp][lane + 32 * i] = o[i];
  if (lane == 0) warp_sum_of[warp] = sum;
  __syncthreads();
  const int d = threadIdx.x;
  if (d >= D) return;
  float total = 0.0f, total_sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kMergeWarps; ++i) {
    total += warp_o[i][d];
    total_sum += warp_sum_of[i];
  }
  y[row * D + d] = f32_to_bf16(total / total_sum);
}

void launch_merge(uint16_t* y, const AttentionPartials& partials, const AttentionSplits& cut, int64_t rows, int64_t D,
                  cudaStream_t stream) {
  attention_merge_kernel<<<static_cast<unsigned>(rows), 32 * kMergeWarps, 0, stream>>>(y, partials, cut, D,
                                                                                       score_scale(D));
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

// Row `at` of the cache of head kv.
__device__ __forceinline__ const uint16_t* cache_row(const uint16_t* const* pages, int64_t page_tokens, int64_t D,
                                                     int64_t kv, int64_t at) {
  // Positions fit 32 bits, whose division is several times shorter.
  const auto tokens = static_cast<uint32_t>(page_tokens), position = static_cast<uint32_t>(at);
  return pages[position / tokens] + (kv * page_tokens + position % tokens) * D;
}

}  // namespace qn
