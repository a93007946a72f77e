// adamw_vectors of ops/adamw.h.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "core/cuda_check.h"
#include "ops/adamw_rows_cuda.h"

namespace qn {

namespace {

constexpr int kVectorThreads = 512, kVectorWarps = kVectorThreads / kWarp;

// What differs from vector to vector. As many as kernel parameters of 4 KB hold.
struct VectorStep {
  const float* g;
  void* dense;
  float *m, *v;
  int64_t K;
  float a, b, rate, keep;
  uint32_t parameter;
  Storage storage;
};
constexpr int64_t kVectorsAtOnce = 48;
struct VectorSteps {
  AdamwArgs shared;
  VectorStep steps[kVectorsAtOnce];
};
static_assert(sizeof(VectorSteps) <= 4000);

// Σ over the thread block, the same in every thread. The block waits.
__device__ double block_sum(double x) {
  __shared__ double warps[kVectorWarps];
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0;
  for (const double each : warps) sum += each;
  return sum;
}

// computes   a step of each vector, unless its gradient is not finite or the whole step was stopped before
// moves      4 B of gradient read twice, moments and weight read and written once                bound: latency
// launch     grid vectors, block 512, smem 128 B; an element a thread and round
// numerics   the scalar functions of the CPU: its bytes; sums in f64, of a thread, a warp in a tree, then the warps
// measured   not yet
__global__ void __launch_bounds__(kVectorThreads)
    adamw_vectors_kernel(UpdateTotals* __restrict__ totals, const __grid_constant__ VectorSteps steps) {
  const VectorStep& step = steps.steps[blockIdx.x];
  AdamwArgs args = steps.shared;
  args.dense = step.dense;
  args.storage = step.storage;
  args.m.values = step.m;
  args.v.values = step.v;
  args.a = step.a;
  args.b = step.b;
  args.rate = step.rate;
  args.keep = step.keep;
  args.parameter = step.parameter;
  UpdateTotals total;
  for (int64_t column = threadIdx.x; column < step.K; column += kVectorThreads) {
    const double g = step.g[column];
    total.gradient_squares = fma(g, g, total.gradient_squares);
  }
  total.gradient_squares = block_sum(total.gradient_squares);
  if (isfinite(total.gradient_squares) && (args.stop == nullptr || *args.stop == 0)) {
    const MomentRates rates = moment_rates(args);
    for (int64_t column = threadIdx.x; column < step.K; column += kVectorThreads) {
      const float u = step_plain_element(args, rates, column, step.g[column]);
      total.update_squares += static_cast<double>(u) * u;
      const uint32_t word = args.storage == Storage::kF32 ? 0 : element_word(args, column, RandomStream::kWeight);
      step_dense_element(args, column, u, word);
    }
    total.update_squares = block_sum(total.update_squares);
  }
  if (threadIdx.x == 0) totals[step.parameter] = total;
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void adamw_vectors_cuda(UpdateTotals* totals, const AdamwArgs* vectors, int64_t count, CudaStream stream) {
  for (int64_t begin = 0; begin < count; begin += kVectorsAtOnce) {
    const int64_t some = std::min(count - begin, kVectorsAtOnce);
    VectorSteps steps;
    steps.shared = vectors[begin];
    for (int64_t i = 0; i < some; ++i) {
      const AdamwArgs& args = vectors[begin + i];
      steps.steps[i] = {args.g,
                        args.dense,
                        static_cast<float*>(args.m.values),
                        static_cast<float*>(args.v.values),
                        args.K,
                        args.a,
                        args.b,
                        args.rate,
                        args.keep,
                        args.parameter,
                        args.storage};
    }
    adamw_vectors_kernel<<<static_cast<unsigned>(some), kVectorThreads, 0, static_cast<cudaStream_t>(stream)>>>(totals,
                                                                                                                steps);
    QN_CUDA_CHECK(cudaGetLastError());
  }
}

}  // namespace qn
