#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/status.h"
#include "ops/embedding.h"
#include "ops/weight_eight_cuda.h"

namespace qn {

namespace {

constexpr int kThreads = 128;

// computes   x[t] = w[ids[t]]
// moves      read T·H · (9/16 packed, 2 or 4 dense) B, write 2·T·H B     bound: memory
// launch     grid T, block 128, smem 0                                   one row a block, 8 columns a thread and turn
// needs      H % 8 == 0 (packed: 16), rows 16-byte aligned
// numerics   f32 as the CPU, bf16 rounding once, at the store
// measured   H200 T=8192 H=2560: NVFP4 2590 GB/s, 64 % of copy (4039); bf16 3432 GB/s, 85 %; 2026-11-21
template <Storage storage>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(uint16_t* __restrict__ x, const WeightView w, const int32_t* __restrict__ ids) {
  const int64_t H = w.cols, to = blockIdx.x * H, from = ids[blockIdx.x] * H;
  for (int64_t h = threadIdx.x * kLaneValues; h < H; h += kThreads * kLaneValues) {
    store8(x + to + h, weight_eight<storage>(w, from + h));
  }
}

constexpr int kTileIds = 4 * kThreads, kTileWords = kTileIds / 32;
// Rows loaded before the first is added.
constexpr int kRowsInFlight = 8;

__device__ void add_rows(Eight& sum, const uint16_t* dx, const int* rows, int count, int64_t H) {
  for (int first = 0; first < count; first += kRowsInFlight) {
    uint4 bits[kRowsInFlight];
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      if (first + i < count) bits[i] = load_bits8(dx + rows[first + i] * H);
    }
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      if (first + i >= count) break;
      const Eight row = bf16x8_to_f32(bits[i]);
#pragma unroll
      for (int j = 0; j < kLaneValues; ++j) sum.value[j] += row.value[j];
    }
  }
}

// Sets `words` to the positions of `id` among ids[begin .. begin + 512), a bit each, and `rows` to the same as
// ascending positions; returns how many. The whole block calls it; `words` must not be the array of the call before.
__device__ int find_rows(uint32_t* words, int* rows, const int32_t* ids, int32_t id, int64_t begin, int64_t T) {
  uint32_t found[kTileIds / kThreads];
#pragma unroll
  for (int i = 0; i < kTileIds / kThreads; ++i) {
    const int64_t t = begin + i * kThreads + threadIdx.x;
    found[i] = __ballot_sync(0xffffffffu, t < T && ids[t] == id);
    if (threadIdx.x % 32 == 0) words[i * (kThreads / 32) + threadIdx.x / 32] = found[i];
  }
  __syncthreads();
  int count = 0;
#pragma unroll
  for (int word = 0; word < kTileWords; ++word) count += __popc(words[word]);
  if (count == 0) return 0;
#pragma unroll
  for (int i = 0; i < kTileIds / kThreads; ++i) {
    if (!(found[i] >> (threadIdx.x % 32) & 1)) continue;
    const int word = i * (kThreads / 32) + threadIdx.x / 32;
    int rank = __popc(found[i] & ((1u << (threadIdx.x % 32)) - 1));
    for (int w = 0; w < word; ++w) rank += __popc(words[w]);
    rows[rank] = static_cast<int>(begin + i * kThreads + threadIdx.x);
  }
  __syncthreads();
  return count;
}

// computes   dw[id − row_begin] += Σ_t dx[t] over the t with this id     by the block of the id's first t
// moves      read 2·T·H B, read and write 4·H B per distinct id of the slice; ids from L2, T a distinct id
// launch     grid (T, ceil(H / 1024)), block 128, smem 2.2 KiB           8 columns a thread, 16-B loads
// needs      H % 8 == 0, rows 16-byte aligned, T < 2^31
// numerics   f32 onto dw in ascending t: the bytes of the CPU
// measured   H200 T=2048 H=2560, 16384 rows: 1800 GB/s, 45 % of copy (4039); T=8192: 1060 GB/s, 26 %; 2026-11-21
__global__ void __launch_bounds__(kThreads)
    embedding_backward_kernel(float* __restrict__ dw, const uint16_t* __restrict__ dx, const int32_t* __restrict__ ids,
                              int64_t T, int64_t H, int64_t row_begin, int64_t row_count) {
  __shared__ uint32_t words[2][kTileWords];
  __shared__ int rows[kTileIds];
  const int64_t first = blockIdx.x;
  const int32_t id = ids[first];
  const int64_t row = id - row_begin;
  if (row < 0 || row >= row_count) return;
  bool earlier = false;
  for (int64_t t = threadIdx.x; t < first && !earlier; t += kThreads) earlier = ids[t] == id;
  if (__syncthreads_or(earlier)) return;

  const int64_t column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kLaneValues;
  const bool mine = column < H;
  Eight sum = {};
  if (mine) sum = load8(dw + row * H + column);
  int turn = 0;
  for (int64_t begin = first; begin < T; begin += kTileIds, turn ^= 1) {
    const int count = find_rows(words[turn], rows, ids, id, begin, T);
    if (mine) add_rows(sum, dx + column, rows, count, H);
  }
  if (mine) store8(dw + row * H + column, sum);
}

template <Storage storage>
void launch_embedding(uint16_t* x, const WeightView& w, const int32_t* ids, int64_t T, cudaStream_t stream) {
  embedding_kernel<storage><<<static_cast<unsigned>(T), kThreads, 0, stream>>>(x, w, ids);
  QN_CUDA_CHECK(cudaGetLastError());
}

void require_eights(int64_t H) {
  if (H % kLaneValues == 0) return;
  fail(Code::kUnsupported, "An embedding on CUDA needs a multiple of 8 columns, not %lld", static_cast<long long>(H));
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void embedding_cuda(uint16_t* x, const WeightView& w, const int32_t* ids, int64_t T, CudaStream stream) {
  require_eights(w.cols);
  if (T * w.cols == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (w.storage) {
    case Storage::kNvfp4:
      return launch_embedding<Storage::kNvfp4>(x, w, ids, T, cuda_stream);
    case Storage::kBnb4:
      return launch_embedding<Storage::kBnb4>(x, w, ids, T, cuda_stream);
    case Storage::kF32:
      return launch_embedding<Storage::kF32>(x, w, ids, T, cuda_stream);
    case Storage::kF16:
      return launch_embedding<Storage::kF16>(x, w, ids, T, cuda_stream);
    case Storage::kBF16:
      return launch_embedding<Storage::kBF16>(x, w, ids, T, cuda_stream);
  }
}

void embedding_backward_cuda(float* dw, const uint16_t* dx, const int32_t* ids, int64_t T, int64_t H, int64_t row_begin,
                             int64_t row_count, CudaStream stream) {
  require_eights(H);
  if (T * H * row_count == 0) return;
  constexpr int64_t kColumns = int64_t{kThreads} * kLaneValues;
  const dim3 grid(static_cast<unsigned>(T), static_cast<unsigned>((H + kColumns - 1) / kColumns));
  embedding_backward_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(dw, dx, ids, T, H, row_begin,
                                                                                      row_count);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
