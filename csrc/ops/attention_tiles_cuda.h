// What attention's CUDA kernels share: tiles of rows in shared memory, their products on tensor cores, visibility of
// keys, and a warp's sums. For .cu files alone. A tile bf16[rows, D] has rows of D + 8 elements, so that the eight rows
// of an ldmatrix lie in different banks.
#pragma once

#include "core/status.h"
#include "ops/attention_mma.h"
#include "ops/attention_task.h"

namespace qn {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kWarps = 4;
constexpr int kBlockThreads = 32 * kWarps;
constexpr int kMaxCudaHeadDim = 256;
constexpr int kLaneDims = kMaxCudaHeadDim / 32;  // a warp holds a row as element lane + 32·i of lane's register i

template <int D>
constexpr int kTileStride = D + 8;
template <int D>
constexpr int64_t tile_bytes(int64_t rows) {
  return rows * kTileStride<D> * int64_t{sizeof(uint16_t)};
}

// check_attention_shape(), and Error(kInvalidArgument) for a D that these kernels have no room for.
inline void check_attention_shape_cuda(const AttentionShape& shape) {
  check_attention_shape(shape);
  if (shape.D > kMaxCudaHeadDim) {
    fail(Code::kInvalidArgument, "Expected a head dim of 1 to %d on CUDA but received %lld", kMaxCudaHeadDim,
         static_cast<long long>(shape.D));
  }
}

// Starts copying `rows` rows to a tile, row r from row_of(r), which is also asked for row 0 where a row does not exist:
// that becomes zeros. All threads of the block take part.
template <int D, int rows, typename Exists, typename RowOf>
__device__ __forceinline__ void load_tile(uint16_t* tile, Exists&& exists, RowOf&& row_of) {
  constexpr int kChunks = D / 8;
  static_assert(rows * kChunks % kBlockThreads == 0);
#pragma unroll
  for (int i = 0; i < rows * kChunks / kBlockThreads; ++i) {
    const int at = i * kBlockThreads + threadIdx.x;
    const int row = at / kChunks, column = at % kChunks * 8;
    const bool valid = exists(row);
    copy_async_16(tile + row * kTileStride<D> + column, row_of(valid ? row : 0) + column, valid);
  }
}

// Rows of global memory, `stride` elements apart. Row r exists if r < count and mask is null or mask[r] is not 0.
struct GlobalRows {
  const uint16_t* base;
  int64_t stride, count;
  const uint8_t* mask;
};
template <int D, int rows>
__device__ __forceinline__ void load_tile(uint16_t* tile, const GlobalRows& from) {
  load_tile<D, rows>(
      tile, [&](int row) { return row < from.count && (!from.mask || from.mask[row]); },
      [&](int row) { return from.base + row * from.stride; });
}

// c f32[16·M, 8·N] += a · bᵀ of tile rows a bf16[16·M, D] and b bf16[8·N, D].
template <int D, int M, int N>
__device__ __forceinline__ void add_row_products(float (&c)[M][N][4], const uint16_t* a, const uint16_t* b) {
  const int lane = threadIdx.x % 32;
  const uint16_t* a_row = a + lane % 16 * kTileStride<D> + lane / 16 * 8;
  const uint16_t* b_row = b + (lane / 16 * 8 + lane % 8) * kTileStride<D> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < D; k += 16) {
    uint32_t left[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) load_matrices(left[m], a_row + m * 16 * kTileStride<D> + k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t right[4];
      load_matrices(right, b_row + n * 8 * kTileStride<D> + k);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma_bf16(c[m][n], left[m], right[0], right[1]);
        mma_bf16(c[m][n + 1], left[m], right[2], right[3]);
      }
    }
  }
}

// c f32[16·M, 8·C] += p · b of fragments p f32[16·M, 8·N], rounded to bf16, and columns 0 .. 8·C − 1 from b on of tile
// rows bf16[8·N, D].
template <int D, int M, int N, int C>
__device__ __forceinline__ void add_column_products(float (&c)[M][C][4], const float (&p)[M][N][4], const uint16_t* b) {
  const int lane = threadIdx.x % 32;
  const uint16_t* b_row = b + lane % 16 * kTileStride<D> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    uint32_t left[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      left[m][0] = pack_bf16(p[m][k][0], p[m][k][1]);
      left[m][1] = pack_bf16(p[m][k][2], p[m][k][3]);
      left[m][2] = pack_bf16(p[m][k + 1][0], p[m][k + 1][1]);
      left[m][3] = pack_bf16(p[m][k + 1][2], p[m][k + 1][3]);
    }
#pragma unroll
    for (int n = 0; n < C; n += 2) {
      uint32_t right[4];
      load_matrices_transposed(right, b_row + k * 8 * kTileStride<D> + n * 8);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma_bf16(c[m][n], left[m], right[0], right[1]);
        mma_bf16(c[m][n + 1], left[m], right[2], right[3]);
      }
    }
  }
}

template <int M, int N>
__device__ __forceinline__ void clear(float (&c)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] = 0.0f;
    }
  }
}

// Rows of fragments, times factor, to global rows as bf16: to[row · stride + column] for row < count.
template <int N>
__device__ __forceinline__ void store_rows(uint16_t* to, int64_t stride, int64_t count, const float (&c)[N][4],
                                           float factor_low, float factor_high) {
  const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (row < count) {
      *reinterpret_cast<uint32_t*>(to + row * stride + 8 * n + column) =
          pack_bf16(c[n][0] * factor_low, c[n][1] * factor_low);
    }
    if (row + 8 < count) {
      *reinterpret_cast<uint32_t*>(to + (row + 8) * stride + 8 * n + column) =
          pack_bf16(c[n][2] * factor_high, c[n][3] * factor_high);
    }
  }
}

// Bit i says whether mask[i] of the first `count` is not 0; all ones without a mask. All lanes of the warp take part.
__device__ __forceinline__ uint64_t visible_keys(const uint8_t* mask, int64_t count) {
  if (!mask) return ~uint64_t{0};
  const int lane = threadIdx.x % 32;
  const uint32_t low = __ballot_sync(~0u, lane < count && mask[lane]);
  const uint32_t high = __ballot_sync(~0u, lane + 32 < count && mask[lane + 32]);
  return low | static_cast<uint64_t>(high) << 32;
}

// Over the four lanes that hold a row of a C fragment.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// What a maximum of scores subtracts from them, in powers of two. A row that sees nothing has a maximum of −inf, which
// must not be subtracted from itself.
__device__ __forceinline__ float softmax_shift(float max, float log2_scale) {
  return max == -INFINITY ? 0.0f : max * log2_scale;
}

// The same sum in every lane, of pairs in an order that never changes.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

__device__ __forceinline__ void load_row(float (&x)[kLaneDims], const uint16_t* row, int64_t D) {
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) {
    const int d = threadIdx.x % 32 + 32 * i;
    x[i] = d < D ? bf16_to_f32(row[d]) : 0.0f;
  }
}

__device__ __forceinline__ void store_row(uint16_t* row, const float (&x)[kLaneDims], float factor, int64_t D) {
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) {
    const int d = threadIdx.x % 32 + 32 * i;
    if (d < D) row[d] = f32_to_bf16(x[i] * factor);
  }
}

__device__ __forceinline__ float row_dot(const float (&a)[kLaneDims], const float (&b)[kLaneDims]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) sum = fmaf(a[i], b[i], sum);
  return warp_sum(sum);
}

__device__ __forceinline__ void add_row(float (&y)[kLaneDims], float factor, const float (&x)[kLaneDims]) {
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) y[i] = fmaf(factor, x[i], y[i]);
}

}  // namespace qn
