#include "ops/gemv_backward_weight.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "core/cuda_check.h"
#include "core/status.h"
#include "ops/bf16x8_cuda.h"

namespace qn {

namespace {

constexpr int kWarp = 32, kMostThreads = 640, kMostWarps = kMostThreads / kWarp;
constexpr int kTokens = kGemvWeightTokens, kColumns = 4;  // of x that a thread holds in registers
constexpr int kTileRows = 32, kRowsAtOnce = 4;
constexpr unsigned kEveryLane = 0xffffffffu;

// Values of kColumns bf16.
__device__ __forceinline__ float4 widened(const uint2& bits) {
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u), __uint_as_float(bits.y << 16),
          __uint_as_float(bits.y & 0xffff0000u)};
}

// f32 unless squares leave its range, where they would be none or infinite.
__device__ __forceinline__ double sum_of_squares(const float4& g) {
  const float sum = fmaf(g.x, g.x, fmaf(g.y, g.y, fmaf(g.z, g.z, g.w * g.w)));
  if (sum >= 1e-30f && sum <= 1e37f) return sum;
  const double x = g.x, y = g.y, z = g.z, w = g.w;
  return fma(x, x, fma(y, y, fma(z, z, w * w)));
}

// Σ over the lanes of each of four numbers; the lanes of a quarter warp have that of their quarter.
__device__ __forceinline__ double sum_of_quarter(const double (&rows)[kRowsAtOnce], int lane) {
  const bool second_half = (lane & 16) != 0, second_quarter = (lane & 8) != 0;
  const double first =
      (second_half ? rows[2] : rows[0]) + __shfl_xor_sync(kEveryLane, second_half ? rows[0] : rows[2], 16);
  const double second =
      (second_half ? rows[3] : rows[1]) + __shfl_xor_sync(kEveryLane, second_half ? rows[1] : rows[3], 16);
  double sum = (second_quarter ? second : first) + __shfl_xor_sync(kEveryLane, second_quarter ? first : second, 8);
  for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(kEveryLane, sum, step);
  return sum;
}

// computes   dw = bf16(Σ_t dy[t]ᵀ · x[t]), squares = Σ dw² of each row
// moves      read 2·T·K B a tile of 32 rows from L2, write 2·R·K B                                bound: instructions
// launch     grid min(SMs, rows / 4), block K/4 threads, up to 640 and then in passes, smem 6 KiB; a thread holds four
//            columns of x in registers, the rows of a block pass by
// needs      K % 4 == 0, x and dw 8-byte aligned
// numerics   f32 in the order of tokens, one rounding; squares of four in f32, the rest of a row in f64 in a fixed tree
// measured   H200 under ncu, at its lower clock, T=8: [9728, 2560] 36.0 µs, 1.4 TB/s, 69 % of the issue slots;
//            2026-11-21
__global__ void __launch_bounds__(kMostThreads, 1)
    gemv_backward_weight_kernel(const __grid_constant__ GemvBackwardWeightCuda p, int64_t rows_per_block) {
  __shared__ float4 dy[kTileRows][kTokens / 4];
  __shared__ double partials[kTileRows][kMostWarps];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lane = thread % kWarp, warp = thread / kWarp;
  const int64_t begin = blockIdx.x * rows_per_block, end = min(begin + rows_per_block, p.R);
  for (int64_t tile = begin; tile < end; tile += kTileRows) {
    const int rows = static_cast<int>(min(end - tile, int64_t{kTileRows}));
    for (int i = thread; i < kTileRows * kTokens; i += threads) {
      const int row = i / kTokens, token = i % kTokens;
      reinterpret_cast<float*>(dy)[i] = row < rows && token < p.T ? load1(p.dy + token * p.dy_stride + tile + row) : 0;
    }
    __syncthreads();
    for (int64_t first = 0; first < p.K; first += int64_t{kColumns} * threads) {
      const int64_t column = first + kColumns * thread;
      const bool inside = column < p.K;
      float4 x[kTokens];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        x[t] = {0, 0, 0, 0};
        if (inside && t < p.T) x[t] = widened(*reinterpret_cast<const uint2*>(p.x + t * p.K + column));
      }
      for (int row = 0; row < rows; row += kRowsAtOnce) {
        double squares[kRowsAtOnce];
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i) {
          const float4 early = dy[row + i][0], late = dy[row + i][1];
          const float weights[kTokens] = {early.x, early.y, early.z, early.w, late.x, late.y, late.z, late.w};
          float4 sum = {0, 0, 0, 0};
#pragma unroll
          for (int t = 0; t < kTokens; ++t) {
            sum = {fmaf(weights[t], x[t].x, sum.x), fmaf(weights[t], x[t].y, sum.y), fmaf(weights[t], x[t].z, sum.z),
                   fmaf(weights[t], x[t].w, sum.w)};
          }
          const uint2 bits{f32_to_bf16x2(sum.x, sum.y), f32_to_bf16x2(sum.z, sum.w)};
          if (inside && row + i < rows) *reinterpret_cast<uint2*>(p.dw + (tile + row + i) * p.K + column) = bits;
          squares[i] = inside ? sum_of_squares(widened(bits)) : 0;
        }
        const double sum = sum_of_quarter(squares, lane);
        if (lane % (kWarp / kRowsAtOnce) == 0) {
          double& partial = partials[row + lane / (kWarp / kRowsAtOnce)][warp];
          partial = first == 0 ? sum : partial + sum;
        }
      }
    }
    __syncthreads();
    if (thread < rows) {
      double sum = 0;
      for (int w = 0; w < threads / kWarp; ++w) sum += partials[thread][w];
      p.squares[tile + thread] = sum;
      if (p.stop.flag != nullptr && !isfinite(sum)) atomicCAS(p.stop.flag, 0u, p.stop.mark);
    }
    __syncthreads();  // of dy and partials, before the next tile's
  }
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void gemv_backward_weight_cuda(const GemvBackwardWeightCuda& args, CudaStream stream) {
  if (args.T > kGemvWeightTokens || args.K % kColumns != 0) {
    fail(Code::kInternal, "a gradient of %lld tokens and %lld columns", static_cast<long long>(args.T),
         static_cast<long long>(args.K));
  }
  if (args.R == 0) return;
  int device = 0, processors = 0;
  QN_CUDA_CHECK(cudaGetDevice(&device));
  QN_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const int64_t lanes = std::max<int64_t>((args.K + kColumns - 1) / kColumns, 1);
  const int64_t passes = (lanes + kMostThreads - 1) / kMostThreads;
  const int64_t threads = ((lanes + passes - 1) / passes + kWarp - 1) / kWarp * kWarp;
  // Whole groups of rows.
  const int64_t groups = (args.R + kRowsAtOnce - 1) / kRowsAtOnce;
  const int64_t rows_per_block = (groups + processors - 1) / processors * kRowsAtOnce;
  const auto grid = static_cast<unsigned>((args.R + rows_per_block - 1) / rows_per_block);
  gemv_backward_weight_kernel<<<grid, static_cast<unsigned>(threads), 0, static_cast<cudaStream_t>(stream)>>>(
      args, rows_per_block);
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
