// row_squares and sum_rows of ops/adamw.h.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "core/cuda_check.h"
#include "ops/adamw_elements.h"

namespace qn {

namespace {

using namespace adamw;

constexpr unsigned kEveryLane = 0xffffffffu;

__device__ float gradient_of(float g) { return g; }
__device__ float gradient_of(uint16_t g) { return bf16_value(g); }

// computes   Σ g² of each row; the stop flag where one is not finite
// moves      read 4 (bf16: 2) B an element                              bound: memory
// launch     grid ceil(rows / 16), block 256, smem 0                    16 threads a row, each one lane of the CPU's 16
// numerics   f64: squares are exact, each lane adds in the order of columns, the lanes in their order: the CPU's bytes
// measured   not yet
constexpr int kLanes = 16, kSquaresThreads = 256;
template <typename G>
__global__ void __launch_bounds__(kSquaresThreads)
    row_squares_kernel(double* __restrict__ squares, const G* __restrict__ g, int64_t row_count, int64_t K,
                       StopFlag stop) {
  const int64_t row = int64_t{blockIdx.x} * (kSquaresThreads / kLanes) + threadIdx.x / kLanes;
  const G* from = g + row * K;
  double sum = 0;
  if (row < row_count) {
#pragma unroll 16
    for (int64_t column = threadIdx.x % kLanes; column < K; column += kLanes) {
      const double x = gradient_of(from[column]);
      sum = fma(x, x, sum);
    }
  }
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += __shfl_sync(kEveryLane, sum, lane, kLanes);
  if (row >= row_count || threadIdx.x % kLanes != 0) return;
  squares[row] = total;
  if (stop.flag != nullptr && !isfinite(total)) atomicCAS(stop.flag, 0u, stop.mark);
}

// As many as kernel parameters of 4 KB hold.
constexpr int64_t kRangesAtOnce = 96;
struct RowRanges {
  RowRange ranges[kRangesAtOnce];
};
static_assert(sizeof(RowRanges) <= 4000);

struct RowSums {
  UpdateTotals total;

  __device__ void add(const RowSums& other) {
    total.gradient_squares += other.total.gradient_squares;
    total.update_squares += other.total.update_squares;
    total.changed_codes += other.total.changed_codes;
    total.saturated += other.total.saturated;
  }
};

// computes   totals over the rows of each range
// moves      read 16 + 8 B a row                                         bound: latency
// launch     grid ranges, block 512, smem 16 KiB                         thread i adds rows i, i + 512, …
// numerics   f64; each thread in order of its rows, then a fixed tree
// measured   not yet
constexpr int kSumThreads = 512;
__global__ void __launch_bounds__(kSumThreads)
    sum_rows_kernel(UpdateTotals* __restrict__ totals, const AdamwRow* __restrict__ results,
                    const double* __restrict__ squares, const __grid_constant__ RowRanges ranges) {
  __shared__ RowSums sums[kSumThreads];
  const RowRange& range = ranges.ranges[blockIdx.x];
  UpdateTotals own;
#pragma unroll 4
  for (int64_t row = range.begin + threadIdx.x; row < range.begin + range.count; row += kSumThreads) {
    if (range.measured) own.gradient_squares += squares[row];
    if (!range.updated) continue;
    own.update_squares += results[row].update_squares;
    own.changed_codes += results[row].changed_codes;
    own.saturated += results[row].saturated;
  }
  sums[threadIdx.x] = {own};
  for (unsigned half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x].add(sums[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) totals[range.parameter] = sums[0].total;
}

// --------------------------------------------------------------------------------------------------------------------

template <typename G>
void launch_squares(double* squares, const G* g, int64_t row_count, int64_t K, const StopFlag& stop,
                    CudaStream stream) {
  if (row_count == 0) return;
  constexpr int64_t kRows = kSquaresThreads / kLanes;
  row_squares_kernel<<<static_cast<unsigned>((row_count + kRows - 1) / kRows), kSquaresThreads, 0,
                       static_cast<cudaStream_t>(stream)>>>(squares, g, row_count, K, stop);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void row_squares_cuda(double* squares, const float* g, int64_t row_count, int64_t K, const StopFlag& stop,
                      CudaStream stream) {
  launch_squares(squares, g, row_count, K, stop, stream);
}

void row_squares_bf16_cuda(double* squares, const uint16_t* g, int64_t row_count, int64_t K, const StopFlag& stop,
                           CudaStream stream) {
  launch_squares(squares, g, row_count, K, stop, stream);
}

void sum_rows_cuda(UpdateTotals* totals, const AdamwRow* results, const double* squares, const RowRange* ranges,
                   int64_t range_count, CudaStream stream) {
  for (int64_t begin = 0; begin < range_count; begin += kRangesAtOnce) {
    const int64_t count = std::min(range_count - begin, kRangesAtOnce);
    RowRanges some;
    std::copy_n(ranges + begin, count, some.ranges);
    sum_rows_kernel<<<static_cast<unsigned>(count), kSumThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        totals, results, squares, some);
    QN_CUDA_CHECK(cudaGetLastError());
  }
}

}  // namespace qn
