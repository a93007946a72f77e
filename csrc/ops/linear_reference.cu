// linear_reference_cuda of ops/linear.h.
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/dtype.h"
#include "format/nvfp4.h"
#include "ops/bnb4_cuda.h"
#include "ops/linear.h"

namespace qn {

namespace {

constexpr int kWarps = 8;
constexpr int kLanes = 32;

__device__ float decoded(const Nvfp4View& w, int64_t at) {
  const uint32_t byte = w.codes[at / 2];
  return e2m1_to_f32(at % 2 ? byte >> 4 : byte & 15u) * e4m3_to_f32(w.scales[at / kBlockSize]) * w.global_scale;
}

__device__ float decoded(const Bnb4View& w, int64_t at) {
  const uint32_t byte = w.codes[at / 2];
  return bnb4_value(w.codebook, at % 2 ? byte >> 4 : byte & 15u) * w.absmax[at / kBnb4BlockSize];
}

__device__ float weight_at(const WeightView& w, int64_t at) {
  switch (w.storage) {
    case Storage::kF32:
      return static_cast<const float*>(w.dense)[at];
    case Storage::kF16:
      return f16_to_f32(static_cast<const uint16_t*>(w.dense)[at]);
    case Storage::kBF16:
      return bf16_to_f32(static_cast<const uint16_t*>(w.dense)[at]);
    case Storage::kNvfp4:
      return decoded(w.packed, at) + (w.residual.codes ? decoded(w.residual, at) : 0.0f);
    case Storage::kBnb4:
      return decoded(w.bnb4, at);
  }
  return 0;
}

// computes   y = x · wᵀ with every weight decoded on its own
// moves      read T·N·K weights, one by one                              bound: instructions; it is the truth, not fast
// launch     grid (ceil(N / 8), T), block 256, smem 0                    one warp an output
// numerics   f64 sums in a fixed order, one rounding at the store
// measured   never: nothing waits for it
__global__ void __launch_bounds__(kWarps* kLanes)
    linear_reference_kernel(void* y, CudaFloat y_type, const uint16_t* x, WeightView w, bool accumulate) {
  const int64_t n = int64_t{blockIdx.x} * kWarps + threadIdx.x / kLanes, t = blockIdx.y;
  if (n >= w.rows) return;
  double sum = 0;
  for (int64_t k = threadIdx.x % kLanes; k < w.cols; k += kLanes) {
    sum += static_cast<double>(weight_at(w, n * w.cols + k)) * static_cast<double>(bf16_to_f32(x[t * w.cols + k]));
  }
  for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % kLanes != 0) return;
  const int64_t at = t * w.rows + n;
  if (y_type == CudaFloat::kF32) {
    float* out = static_cast<float*>(y) + at;
    *out = static_cast<float>(accumulate ? sum + static_cast<double>(*out) : sum);
  } else {
    uint16_t* out = static_cast<uint16_t*>(y) + at;
    *out = f32_to_bf16(static_cast<float>(accumulate ? sum + static_cast<double>(bf16_to_f32(*out)) : sum));
  }
}

}  // namespace

void linear_reference_cuda(void* y, CudaFloat y_type, const uint16_t* x, const WeightView& w, int64_t T,
                           bool accumulate, CudaStream stream) {
  if (T == 0 || w.rows == 0) return;
  const dim3 grid(static_cast<unsigned>((w.rows + kWarps - 1) / kWarps), static_cast<unsigned>(T));
  linear_reference_kernel<<<grid, kWarps * kLanes, 0, static_cast<cudaStream_t>(stream)>>>(y, y_type, x, w, accumulate);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
