#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "core/status.h"
#include "ops/bf16x8_cuda.h"
#include "ops/group_reduce_cuda.h"
#include "ops/rms_norm.h"

namespace qn {

namespace {

// Runs of rows that dw is summed over first: enough blocks for the largest device, and 512 · H floats stay in its L2.
constexpr int64_t kRowRuns = 512;

// A row belongs to a group of kLanes threads, each with up to kVectors vectors of eight columns: vector i of a lane is
// vector lane + i · kLanes of the row. Small rows share a block.
template <int kGroupLanes, int kLaneVectors>
struct RowGroups {
  static constexpr int kLanes = kGroupLanes, kVectors = kLaneVectors;
  static constexpr int kThreads = kLanes <= 32 ? 256 : kLanes;
  static constexpr int kGroups = kThreads / kLanes;
  static constexpr int kColumns = kLanes * kVectors * kLaneValues;
};
using HeadRows = RowGroups<16, 1>;
using ShortRows = RowGroups<32, 4>;
using HiddenRows = RowGroups<128, 4>;
using LongRows = RowGroups<512, 4>;

// Calls launch(groups) with the smallest groups that hold a row of H columns.
template <typename Launch>
void with_groups(int64_t H, Launch&& launch) {
  if (H % kLaneValues != 0 || H > LongRows::kColumns) {
    fail(Code::kUnsupported, "RMSNorm on CUDA needs rows of a multiple of 8 columns up to %d, not %lld",
         LongRows::kColumns, static_cast<long long>(H));
  }
  if (H <= HeadRows::kColumns) return launch(HeadRows{});
  if (H <= ShortRows::kColumns) return launch(ShortRows{});
  if (H <= HiddenRows::kColumns) return launch(HiddenRows{});
  launch(LongRows{});
}

// computes   y = x · rsqrt(mean(x²) + eps) · w                          per row
// moves      read 2·T·H B (w stays in L1), write 2·T·H B                bound: memory
// launch     grid ceil(T / groups), block 256, 128 or 512            a row per 16, 32, 128 or 512 threads, 16-B loads
// needs      H % 8 == 0, H <= 16384, 16-byte aligned rows
// numerics   f32 sum in fixed tree order; bf16 rounding once, at the store
// measured   H200 T=8192 H=2560: 3425 GB/s, 85 % of copy (4039); T=262144 H=128: 3431 GB/s, 85 %; 2026-11-21
template <typename Groups>
__global__ void __launch_bounds__(Groups::kThreads)
    rms_norm_kernel(uint16_t* y, float* inv_rms, const uint16_t* x, const float* __restrict__ w, int64_t T, int64_t H,
                    float eps) {
  const int lane = threadIdx.x % Groups::kLanes;
  const int64_t t = int64_t{blockIdx.x} * Groups::kGroups + threadIdx.x / Groups::kLanes;
  // Past the last row only where rows share a block; the exchange of lanes needs those threads too.
  const int vectors = t < T ? static_cast<int>(H / kLaneValues) : 0;
  uint4 bits[Groups::kVectors];
#pragma unroll
  for (int i = 0; i < Groups::kVectors; ++i) {
    const int v = lane + i * Groups::kLanes;
    if (v < vectors) bits[i] = load_bits8(x + t * H + v * kLaneValues);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < Groups::kVectors; ++i) {
    if (lane + i * Groups::kLanes >= vectors) continue;
    const Eight eight = bf16x8_to_f32(bits[i]);
#pragma unroll
    for (int j = 0; j < kLaneValues; ++j) sum = fmaf(eight.value[j], eight.value[j], sum);
  }
  sum = reduce_group<Groups::kLanes>(sum, AddLanes{});
  const float inverse = 1.0f / sqrtf(sum / static_cast<float>(H) + eps);
  if (t < T && lane == 0 && inv_rms) inv_rms[t] = inverse;
#pragma unroll
  for (int i = 0; i < Groups::kVectors; ++i) {
    const int v = lane + i * Groups::kLanes;
    if (v >= vectors) continue;
    Eight eight = bf16x8_to_f32(bits[i]);
    const Eight weight = load8(w + v * kLaneValues);
#pragma unroll
    for (int j = 0; j < kLaneValues; ++j) eight.value[j] = eight.value[j] * inverse * weight.value[j];
    store8(y + t * H + v * kLaneValues, eight);
  }
}

// partials[block, column] = Σ over the block's groups, in order, of what each group summed. The whole block calls it.
template <typename Groups>
__device__ void write_partials(float* partials, const Eight (&sums)[Groups::kVectors], int64_t H) {
  const int lane = threadIdx.x % Groups::kLanes;
  float* to = partials + blockIdx.x * H;
  if constexpr (Groups::kGroups == 1) {
#pragma unroll
    for (int i = 0; i < Groups::kVectors; ++i) {
      const int column = (lane + i * Groups::kLanes) * kLaneValues;
      if (column < H) store8(to + column, sums[i]);
    }
  } else {
    __shared__ __align__(16) float shared[Groups::kGroups * Groups::kColumns];
    float* own = shared + threadIdx.x / Groups::kLanes * Groups::kColumns;
#pragma unroll
    for (int i = 0; i < Groups::kVectors; ++i) store8(own + (lane + i * Groups::kLanes) * kLaneValues, sums[i]);
    __syncthreads();
    for (int column = threadIdx.x; column < H; column += Groups::kThreads) {
      float sum = 0;
      for (int group = 0; group < Groups::kGroups; ++group) sum += shared[group * Groups::kColumns + column];
      to[column] = sum;
    }
  }
}

// computes   dx (+)= inv_rms · (w·dy − n · mean(w·dy·n)),  partials[run] = Σ_t dy·n over the run's rows,  n = x·inv_rms
// moves      read 4·T·H B (accumulate: 6), write 2·T·H B; partials 4·runs·H B          bound: memory
// launch     grid up to 512 runs of rows (rows_per_run of them), block 256, 128 or 512; smem partials of the groups
// needs      as forward
// numerics   f32; mean in fixed tree order, partials in the order of rows; bf16 rounding once, at the store
// measured   H200 T=8192 H=2560, with the sum of the partials: 2770 GB/s, 69 % of copy (4039); accumulate:
//            2529 GB/s, 63 %; 2026-11-21
template <typename Groups>
__global__ void __launch_bounds__(Groups::kThreads)
    rms_norm_backward_kernel(const RmsNormBackwardCuda a, int64_t rows_per_run) {
  const int lane = threadIdx.x % Groups::kLanes, group = threadIdx.x / Groups::kLanes;
  const int64_t begin = blockIdx.x * rows_per_run;
  const int64_t end = begin + rows_per_run < a.T ? begin + rows_per_run : a.T;
  Eight dw[Groups::kVectors] = {};
  for (int64_t first = begin; first < end; first += Groups::kGroups) {
    const int64_t t = first + group;
    const int vectors = t < end ? static_cast<int>(a.H / kLaneValues) : 0;
    const int64_t row = t * a.H;
    const float inverse = t < end ? a.inv_rms[t] : 0.0f;
    uint4 x_bits[Groups::kVectors], dy_bits[Groups::kVectors];
#pragma unroll
    for (int i = 0; i < Groups::kVectors; ++i) {
      const int v = lane + i * Groups::kLanes;
      if (v >= vectors) continue;
      x_bits[i] = load_bits8(a.x + row + v * kLaneValues);
      dy_bits[i] = load_bits8(a.dy + row + v * kLaneValues);
    }
    float dot = 0;
#pragma unroll
    for (int i = 0; i < Groups::kVectors; ++i) {
      const int v = lane + i * Groups::kLanes;
      if (v >= vectors) continue;
      const Eight x = bf16x8_to_f32(x_bits[i]), dy = bf16x8_to_f32(dy_bits[i]), w = load8(a.w + v * kLaneValues);
#pragma unroll
      for (int j = 0; j < kLaneValues; ++j) {
        const float n = x.value[j] * inverse;
        dot = fmaf(w.value[j] * dy.value[j], n, dot);
        dw[i].value[j] = fmaf(dy.value[j], n, dw[i].value[j]);
      }
    }
    const float mean = reduce_group<Groups::kLanes>(dot, AddLanes{}) / static_cast<float>(a.H);
#pragma unroll
    for (int i = 0; i < Groups::kVectors; ++i) {
      const int v = lane + i * Groups::kLanes;
      if (v >= vectors) continue;
      const Eight x = bf16x8_to_f32(x_bits[i]), dy = bf16x8_to_f32(dy_bits[i]), w = load8(a.w + v * kLaneValues);
      uint16_t* at = a.dx + row + v * kLaneValues;
      Eight dx = {};
      if (a.accumulate) dx = load8(at);
#pragma unroll
      for (int j = 0; j < kLaneValues; ++j) {
        const float n = x.value[j] * inverse;
        dx.value[j] = fmaf(inverse, fmaf(-n, mean, w.value[j] * dy.value[j]), dx.value[j]);
      }
      store8(at, dx);
    }
  }
  if (a.dw) write_partials<Groups>(a.scratch, dw, a.H);
}

constexpr int kSumColumns = 32, kSumParts = 32;

// computes   dw[h] += Σ_run partials[run, h]                             runs in 32 interleaved parts, then the parts
// moves      read 4·runs·H B (from L2), write 4·H B                      bound: latency
// launch     grid ceil(H / 32), block 32 × 32, smem 4 KiB
// numerics   f32; part p holds runs p, p + 32, … in order; parts in order
// measured   not yet
__global__ void __launch_bounds__(kSumColumns* kSumParts)
    sum_partials_kernel(float* dw, const float* __restrict__ partials, int64_t runs, int64_t H) {
  __shared__ float shared[kSumParts][kSumColumns];
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + threadIdx.x;
  float sum = 0;
  if (column < H) {
#pragma unroll 4
    for (int64_t run = threadIdx.y; run < runs; run += kSumParts) sum += partials[run * H + column];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= H) return;
  for (int part = 1; part < kSumParts; ++part) sum += shared[part][threadIdx.x];
  dw[column] += sum;
}

struct RowRuns {
  int64_t rows, runs;
};
RowRuns row_runs(int64_t T, int groups) {
  const int64_t rows = std::max<int64_t>(groups, (T + kRowRuns - 1) / kRowRuns);
  return {rows, (T + rows - 1) / rows};
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void rms_norm_cuda(uint16_t* y, float* inv_rms, const uint16_t* x, const float* w, int64_t T, int64_t H, float eps,
                   CudaStream stream) {
  if (T * H == 0) return;
  with_groups(H, [&](auto groups) {
    using Groups = decltype(groups);
    const auto blocks = static_cast<unsigned>((T + Groups::kGroups - 1) / Groups::kGroups);
    rms_norm_kernel<Groups>
        <<<blocks, Groups::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(y, inv_rms, x, w, T, H, eps);
    QN_CUDA_CHECK(cudaGetLastError());
  });
}

int64_t rms_norm_backward_scratch_bytes(int64_t T, int64_t H) {
  return row_runs(T, 1).runs * H * static_cast<int64_t>(sizeof(float));
}

void rms_norm_backward_cuda(const RmsNormBackwardCuda& args, CudaStream stream) {
  if (args.T * args.H == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  with_groups(args.H, [&](auto groups) {
    using Groups = decltype(groups);
    const RowRuns split = row_runs(args.T, Groups::kGroups);
    rms_norm_backward_kernel<Groups>
        <<<static_cast<unsigned>(split.runs), Groups::kThreads, 0, cuda_stream>>>(args, split.rows);
    QN_CUDA_CHECK(cudaGetLastError());
    if (!args.dw) return;
    const auto blocks = static_cast<unsigned>((args.H + kSumColumns - 1) / kSumColumns);
    sum_partials_kernel<<<blocks, dim3(kSumColumns, kSumParts), 0, cuda_stream>>>(args.dw, args.scratch, split.runs,
                                                                                  args.H);
    QN_CUDA_CHECK(cudaGetLastError());
  });
}

}  // namespace qn
