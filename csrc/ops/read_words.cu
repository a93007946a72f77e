#include "ops/read_words.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"

namespace qn {

namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 8;             // 16-byte loads in flight a thread: 256 KiB a multiprocessor with 4 blocks
constexpr int64_t kBlocks = 4 * 132;  // of an H200; others only get fewer or more waves

// computes   nothing anyone needs: the exclusive or of what a thread reads
// moves      read `bytes`                                             bound: memory
// launch     grid min(528, bytes / 64 KiB), block 512, smem 0         eight independent 16-B loads a thread and step
// needs      bytes % 16 == 0, 16-byte aligned
// numerics   none
// measured   H200 219 MB: 4148 GB/s, 98 % of copy (4245), 2026-11-21
__global__ void __launch_bounds__(kThreads)
    read_words_kernel(uint32_t* out, const uint4* __restrict__ data, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  uint32_t all = 0;
  for (int64_t base = int64_t{blockIdx.x} * kThreads + threadIdx.x; base < count; base += step * kLoads) {
    uint4 v[kLoads] = {};
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t at = base + i * step;
      if (at < count) v[i] = __ldcs(data + at);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) all ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  if (all == 0x9e3779b9u) *out = 1;  // keeps the loads
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void read_words_cuda(uint32_t* out, const void* data, int64_t bytes, CudaStream stream) {
  if (bytes == 0) return;
  const int64_t count = bytes / 16, per_block = kThreads * kLoads;
  const auto grid = static_cast<unsigned>(std::min((count + per_block - 1) / per_block, kBlocks));
  read_words_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(out, static_cast<const uint4*>(data),
                                                                              count);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
