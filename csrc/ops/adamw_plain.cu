// adamw of ops/adamw.h with bf16 or f32 moments.
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "ops/adamw_kernels.h"
#include "ops/adamw_rows_cuda.h"

namespace qn {

namespace {

constexpr int kMaxThreads = 320, kMaxWarps = kMaxThreads / kWarp;

// What the warps of a thread block tell each other about their row.
struct RowShared {
  double update_squares[kMaxWarps];
  int changed_codes[kMaxWarps], saturated[kMaxWarps];
};

// All threads; the totals of each warp into `shared`.
__device__ void share_totals(RowShared& shared, const RowTotals& totals) {
  const unsigned warp = threadIdx.x / kWarp;
  const double squares = warp_sum(totals.update_squares);
  const int changed_codes = __reduce_add_sync(kEveryLane, totals.changed_codes);
  const int saturated = __reduce_add_sync(kEveryLane, totals.saturated);
  if (threadIdx.x % kWarp != 0) return;
  shared.update_squares[warp] = squares;
  shared.changed_codes[warp] = changed_codes;
  shared.saturated[warp] = saturated;
}
// One thread, after a barrier.
__device__ void write_row(AdamwRow* row, const RowShared& shared) {
  AdamwRow result;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) {
    result.update_squares += shared.update_squares[warp];
    result.changed_codes += shared.changed_codes[warp];
    result.saturated += shared.saturated[warp];
  }
  *row = result;
}

// computes   a row with bf16 or f32 moments and weights in NVFP4: nothing is shared by a row but its totals
// moves      weights and moments read and written once, the gradient read once
// launch     grid rows, block min(K/16, 320) up to a multiple of 32, smem 0 (dynamic); a block of 16 columns a thread
// needs      K % 16 == 0; moments, gradients and masters 16-byte, codes 8-byte aligned
// numerics   the scalar functions of the CPU: its bytes
// measured   not yet
__global__ void __launch_bounds__(kMaxThreads)
    adamw_plain_kernel(AdamwRow* __restrict__ rows, const __grid_constant__ AdamwArgs args) {
  __shared__ RowShared shared;
  if (stopped(rows, args)) return;
  const int64_t blocks = args.K / 16, row = args.row_begin + blockIdx.x;
  const MomentRates rates = moment_rates(args);
  RowTotals totals;
  for (int64_t block = threadIdx.x; block < blocks; block += blockDim.x) {
    const int64_t at = row * args.K + 16 * block;
    Nvfp4Block codes = load_packed<MomentFormat::kNvfp4>(args.codes, args.scales, at);
    float u[16], m[16], v[16];
    load_gradient(u, args, int64_t{blockIdx.x} * args.K + 16 * block);
    load_plain(m, args.moments, args.m.values, at);
    load_plain(v, args.moments, args.v.values, at);
    QN_EACH_OF(16) {
      u[i] = step_moments(m[i], v[i], u[i], rates);
      totals.update_squares += static_cast<double>(u[i]) * u[i];
    }
    store_plain(args, args.v.values, at, v, RandomStream::kSecondMoment);
    store_plain(args, args.m.values, at, m, RandomStream::kFirstMoment);
    step_nvfp4_weight(args, at, codes, u, block_words(args, at), totals);
  }
  share_totals(shared, totals);
  __syncthreads();
  if (threadIdx.x == 0) write_row(rows + blockIdx.x, shared);
}

// computes   a row of dense weights with bf16 or f32 moments, any K: vectors of norms
// moves      weights and moments read and written once, the gradient read once
// launch     grid rows, block min(K, 256) up to a multiple of 32; an element a thread and round
// numerics   the scalar functions of the CPU: its bytes
// measured   not yet
__global__ void __launch_bounds__(kMaxThreads)
    adamw_dense_kernel(AdamwRow* __restrict__ rows, const __grid_constant__ AdamwArgs args) {
  __shared__ RowShared shared;
  if (stopped(rows, args)) return;
  const int64_t row = args.row_begin + blockIdx.x;
  const MomentRates rates = moment_rates(args);
  RowTotals totals;
  for (int64_t column = threadIdx.x; column < args.K; column += blockDim.x) {
    const int64_t element = row * args.K + column, from = int64_t{blockIdx.x} * args.K + column;
    const float g = args.g_bf16 != nullptr ? bf16_value(args.g_bf16[from]) : args.g[from];
    const float u = step_plain_element(args, rates, element, g);
    totals.update_squares += static_cast<double>(u) * u;
    const uint32_t word = args.storage == Storage::kF32 ? 0 : element_word(args, element, RandomStream::kWeight);
    step_dense_element(args, element, u, word);
  }
  share_totals(shared, totals);
  __syncthreads();
  if (threadIdx.x == 0) write_row(rows + blockIdx.x, shared);
}

// --------------------------------------------------------------------------------------------------------------------

// Threads for `items` a row: as few rounds as `most` allows, evenly filled.
unsigned threads_of(int64_t items, int64_t most) {
  const int64_t rounds = (items + most - 1) / most, even = (items + rounds - 1) / rounds;
  return static_cast<unsigned>((even + kWarp - 1) / kWarp * kWarp);
}

}  // namespace

void adamw_plain_cuda(AdamwRow* rows, const AdamwArgs& args, CudaStream stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const auto grid = static_cast<unsigned>(args.row_count);
  if (args.storage == Storage::kNvfp4) {
    adamw_plain_kernel<<<grid, threads_of(args.K / 16, kMaxThreads), 0, cuda_stream>>>(rows, args);
  } else {
    adamw_dense_kernel<<<grid, threads_of(args.K, kMaxThreads), 0, cuda_stream>>>(rows, args);
  }
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
