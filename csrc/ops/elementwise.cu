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

// computes   *flag = 1 if some x is not finite
// moves      read each element once                                      bound: memory
// launch     grid <= 2048, block 256, smem 0
// numerics   every thread that writes writes the same value
// measured   not yet
template <typename X>
__global__ void __launch_bounds__(kThreads) find_non_finite_kernel(uint32_t* flag, const X* x, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  bool bad = false;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) bad |= !is_finite(x[i]);
  if (bad) *flag = 1;
}

// --------------------------------------------------------------------------------------------------------------------

template <typename Y, typename X, typename Map>
void launch(Y* y, const X* x, int64_t count, Map map, CudaStream stream) {
  if (count == 0) return;
  map_kernel<<<blocks_for(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(y, x, count, map);
  QN_CUDA_CHECK(cudaGetLastError());
}

template <typename X>
void launch_find(uint32_t* flag, const X* x, int64_t count, CudaStream stream) {
  if (count == 0) return;
  find_non_finite_kernel<<<blocks_for(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(flag, x, count);
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
  launch_find(flag, x, count, stream);
}
void find_non_finite_bf16_cuda(uint32_t* flag, const uint16_t* x, int64_t count, CudaStream stream) {
  launch_find(flag, x, count, stream);
}

}  // namespace qn
