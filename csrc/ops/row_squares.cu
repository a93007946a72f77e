// row_squares of ops/adamw.h.
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "ops/adamw_elements.h"

namespace qn {

namespace {

using namespace adamw;

constexpr unsigned kEveryLane = 0xffffffffu;

__device__ float gradient_of(float g) { return g; }
__device__ float gradient_of(uint16_t g) { return bf16_value(g); }

// computes   Σ g² of each row
// moves      read 4 (bf16: 2) B an element                              bound: memory
// launch     grid ceil(rows / 16), block 256, smem 0                    16 threads a row, each one lane of the CPU's 16
// numerics   f64: squares are exact, each lane adds in the order of columns, the lanes in their order: the CPU's bytes
// measured   not yet
constexpr int kLanes = 16, kSquaresThreads = 256;
template <typename G>
__global__ void __launch_bounds__(kSquaresThreads)
    row_squares_kernel(double* __restrict__ squares, const G* __restrict__ g, int64_t row_count, int64_t K) {
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
  if (row < row_count && threadIdx.x % kLanes == 0) squares[row] = total;
}

// --------------------------------------------------------------------------------------------------------------------

template <typename G>
void launch_squares(double* squares, const G* g, int64_t row_count, int64_t K, CudaStream stream) {
  if (row_count == 0) return;
  constexpr int64_t kRows = kSquaresThreads / kLanes;
  row_squares_kernel<<<static_cast<unsigned>((row_count + kRows - 1) / kRows), kSquaresThreads, 0,
                       static_cast<cudaStream_t>(stream)>>>(squares, g, row_count, K);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void row_squares_cuda(double* squares, const float* g, int64_t row_count, int64_t K, CudaStream stream) {
  launch_squares(squares, g, row_count, K, stream);
}

void row_squares_bf16_cuda(double* squares, const uint16_t* g, int64_t row_count, int64_t K, CudaStream stream) {
  launch_squares(squares, g, row_count, K, stream);
}

}  // namespace qn
