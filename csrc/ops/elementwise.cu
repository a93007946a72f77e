#include "ops/elementwise.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "core/dtype.h"

namespace qn {

namespace {

constexpr int kThreads = 256;
// Enough blocks to fill any GPU; each strides over what is left.
constexpr int64_t kMostBlocks = 2048;

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, kMostBlocks));
}

// computes   y[i] = map(x[i])
// moves      read and write each element once                            bound: memory
// launch     grid <= 2048, block 256, smem 0                             one element a thread and stride
// numerics   as map says
// measured   not yet: none of these is on a path whose time they matter to
template <typename Y, typename X, typename Map>
__global__ void __launch_bounds__(kThreads) map_kernel(Y* y, const X* x, int64_t count, Map map) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) y[i] = map(x[i], y[i]);
}

struct Fill {
  float value;
  __device__ float operator()(float, float) const { return value; }
};
struct WidenBf16 {
  __device__ float operator()(uint16_t x, float) const { return bf16_to_f32(x); }
};
struct NarrowBf16 {
  __device__ uint16_t operator()(float x, uint16_t) const { return f32_to_bf16(x); }
};
struct WidenF16 {
  __device__ float operator()(uint16_t x, float) const { return f16_to_f32(x); }
};
struct F16ToBf16 {
  __device__ uint16_t operator()(uint16_t x, uint16_t) const { return f32_to_bf16(f16_to_f32(x)); }
};
struct Add {
  __device__ float operator()(float x, float y) const { return y + x; }
};

__device__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
__device__ bool is_finite(uint16_t x) { return (x & 0x7f80u) != 0x7f80u; }
__device__ bool is_finite(double x) { return isfinite(x); }

// computes   *flag = value if it was 0 and some x is not finite
// moves      read each element once                                      bound: memory
// launch     grid <= 2048, block 256, smem 0
// numerics   every thread that writes writes the same value
// measured   not yet
template <typename X>
__global__ void __launch_bounds__(kThreads)
    find_non_finite_kernel(uint32_t* flag, uint32_t value, const X* x, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  bool bad = false;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) bad |= !is_finite(x[i]);
  if (bad) atomicCAS(flag, 0u, value);
}

struct RowSums {
  double gradient, update;
  long long changed, saturated;

  __device__ void add(const RowSums& other) {
    gradient += other.gradient;
    update += other.update;
    changed += other.changed;
    saturated += other.saturated;
  }
};

// computes   totals over rows
// moves      read 16 + 8 B a row                                         bound: latency
// launch     one block of 1024, smem 32 KiB                              thread i adds rows i, i + 1024, …
// numerics   f64; each thread in order of its rows, then a fixed tree
// measured   not yet
constexpr int kSumThreads = 1024;
__global__ void __launch_bounds__(kSumThreads)
    sum_rows_kernel(RowTotalsCuda totals, const AdamwRow* rows, const double* squares, int64_t row_count) {
  __shared__ RowSums sums[kSumThreads];
  RowSums own{0, 0, 0, 0};
  for (int64_t row = threadIdx.x; row < row_count; row += kSumThreads) {
    if (squares) own.gradient += squares[row];
    if (!rows) continue;
    own.update += rows[row].update_squares;
    own.changed += rows[row].changed_codes;
    own.saturated += rows[row].saturated;
  }
  sums[threadIdx.x] = own;
  for (unsigned half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x].add(sums[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) {
    *totals.gradient_squares = sums[0].gradient;
    *totals.update_squares = sums[0].update;
    *totals.changed_codes = sums[0].changed;
    *totals.saturated = sums[0].saturated;
  }
}

// --------------------------------------------------------------------------------------------------------------------

template <typename Y, typename X, typename Map>
void launch(Y* y, const X* x, int64_t count, Map map, CudaStream stream) {
  if (count == 0) return;
  map_kernel<<<blocks_for(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(y, x, count, map);
  QN_CUDA_CHECK(cudaGetLastError());
}

template <typename X>
void launch_find(uint32_t* flag, uint32_t value, const X* x, int64_t count, CudaStream stream) {
  if (count == 0) return;
  find_non_finite_kernel<<<blocks_for(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(flag, value, x, count);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void fill_cuda(float* x, float value, int64_t count, CudaStream stream) { launch(x, x, count, Fill{value}, stream); }
void widen_bf16_cuda(float* y, const uint16_t* x, int64_t count, CudaStream stream) {
  launch(y, x, count, WidenBf16{}, stream);
}
void narrow_bf16_cuda(uint16_t* y, const float* x, int64_t count, CudaStream stream) {
  launch(y, x, count, NarrowBf16{}, stream);
}
void widen_f16_cuda(float* y, const uint16_t* x, int64_t count, CudaStream stream) {
  launch(y, x, count, WidenF16{}, stream);
}
void f16_to_bf16_cuda(uint16_t* y, const uint16_t* x, int64_t count, CudaStream stream) {
  launch(y, x, count, F16ToBf16{}, stream);
}
void add_cuda(float* sum, const float* x, int64_t count, CudaStream stream) { launch(sum, x, count, Add{}, stream); }

void find_non_finite_cuda(uint32_t* flag, const float* x, int64_t count, CudaStream stream) {
  launch_find(flag, 1, x, count, stream);
}
void find_non_finite_bf16_cuda(uint32_t* flag, const uint16_t* x, int64_t count, CudaStream stream) {
  launch_find(flag, 1, x, count, stream);
}
void find_non_finite_squares_cuda(uint32_t* flag, uint32_t value, const double* x, int64_t count, CudaStream stream) {
  launch_find(flag, value, x, count, stream);
}

void sum_rows_cuda(const RowTotalsCuda& totals, const AdamwRow* rows, const double* squares, int64_t row_count,
                   CudaStream stream) {
  sum_rows_kernel<<<1, kSumThreads, 0, static_cast<cudaStream_t>(stream)>>>(totals, rows, squares, row_count);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
