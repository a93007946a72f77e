// What one warp does in attention_decode_fused.cu: the softmax of up to eight query heads over its keys, 16 at a time,
// and the merge of a head's splits. For .cu files alone.
#pragma once

#include <type_traits>

#include "ops/attention_tiles_cuda.h"

namespace qn {

// A warp multiplies 16 keys at a time by all query heads of their key head: keys are the rows of the product, heads its
// columns, so that no row of a tensor core's tile is idle for a group of eight.
constexpr int kWarpKeys = 16;
constexpr int kHeads = 8;
constexpr int kMostMergedSplits = 32;  // one a lane

template <int D>
struct WarpTile {
  uint16_t k[kWarpKeys * kTileStride<D>];
  uint16_t v[kWarpKeys * kTileStride<D>];
};

template <int D>
constexpr int kSumStride = D + 4;  // floats, so that the stores of a warp touch all banks

// A warp's softmax over its keys so far. Lane 4g + t has of heads 2t and 2t + 1: the maximum over all lanes, the sum
// over keys ≡ g (mod 8), and o of columns 16m + g, 16m + g + 8 as a fragment C of oᵀ [D, heads].
template <int D>
struct WarpSums {
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  float o[D / 16][4] = {};

  // Keys key0 .. key0 + 15, of which the new position is the last that counts.
  __device__ __forceinline__ void add(const WarpTile<D>& tile, const uint32_t (&q)[D / 16][2], int key0, int position,
                                      float log2_scale) {
    const int lane = threadIdx.x % 32;
    float chains[2][4] = {};  // so that a product need not wait for the one before
    const uint16_t* k_row = tile.k + lane % 16 * kTileStride<D> + lane / 16 * 8;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      uint32_t keys[4];
      load_matrices(keys, k_row + 16 * i);
      mma_bf16(chains[i % 2], keys, q[i][0], q[i][1]);
    }
    float s[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[i] = chains[0][i] + chains[1][i];
      if (key0 + lane / 4 + i / 2 * 8 > position) s[i] = -INFINITY;
    }
    float factors[2];
#pragma unroll
    for (int head = 0; head < 2; ++head) {
      float highest = fmaxf(max[head], fmaxf(s[head], s[head + 2]));
#pragma unroll
      for (int step = 4; step < 32; step *= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
      const float shift = softmax_shift(highest, log2_scale);
      factors[head] = exp2_fast(fmaf(max[head], log2_scale, -shift));
      max[head] = highest;
      s[head] = exp2_fast(fmaf(s[head], log2_scale, -shift));
      s[head + 2] = exp2_fast(fmaf(s[head + 2], log2_scale, -shift));
      sum[head] = fmaf(sum[head], factors[head], s[head] + s[head + 2]);
    }
    const uint32_t p0 = transpose_matrix(pack_bf16(s[0], s[1])), p1 = transpose_matrix(pack_bf16(s[2], s[3]));
    const uint16_t* v_row = tile.v + (lane / 16 * 8 + lane % 8) * kTileStride<D> + lane / 8 % 2 * 8;
#pragma unroll
    for (int m = 0; m < D / 16; ++m) {
      uint32_t values[4];
      load_matrices_transposed(values, v_row + 16 * m);
#pragma unroll
      for (int i = 0; i < 4; ++i) o[m][i] *= factors[i % 2];
      mma_bf16(o[m], values, p0, p1);
    }
  }

  // To this warp's `to` f32[kHeads, kSumStride], `maxima` and `sums` f32[kHeads].
  __device__ __forceinline__ void store(float* to, float* maxima, float* sums) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int head = 0; head < 2; ++head) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) sum[head] += __shfl_xor_sync(~0u, sum[head], step);
      if (g == 0) {
        maxima[2 * t + head] = max[head];
        sums[2 * t + head] = sum[head];
      }
#pragma unroll
      for (int m = 0; m < D / 16; ++m) {
        float* column = to + (2 * t + head) * kSumStride<D> + 16 * m + g;
        column[0] = o[m][head];
        column[8] = o[m][head + 2];
      }
    }
  }
};

// Neighbouring columns of a head, those of one lane of its warp.
template <int D>
struct Columns {
  static constexpr int kCount = D / 32;
  using Vector = std::conditional_t<kCount == 4, float4, float2>;
  union {
    float value[kCount] = {};
    Vector vector;
  };

  __device__ __forceinline__ void add(float factor, const Vector& vector) {
    Columns other;
    other.vector = vector;
#pragma unroll
    for (int i = 0; i < kCount; ++i) value[i] = fmaf(factor, other.value[i], value[i]);
  }
  __device__ __forceinline__ void store(uint16_t* to, float divisor) const {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      *reinterpret_cast<uint32_t*>(to + i) = pack_bf16(value[i] / divisor, value[i + 1] / divisor);
    }
  }
};

// A head's splits to y, by one warp; splits ascending, read past L1, which may hold what was there before.
template <int D>
__device__ __forceinline__ void merge_splits(uint16_t* y, const float2* statistics, const float* o, int splits,
                                             int group, float log2_scale) {
  using Vector = typename Columns<D>::Vector;
  constexpr int kAhead = 16;
  const int lane = threadIdx.x % 32, column = lane * Columns<D>::kCount;
  Vector parts[kAhead];
  Columns<D> total;
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < splits) parts[i] = __ldcg(reinterpret_cast<const Vector*>(o + (first + i) * group * D + column));
    }
  };
  const float2 own = lane < splits ? __ldcg(statistics + lane * group) : make_float2(-INFINITY, 0.0f);
  load(0);
  float highest = own.x;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
  const float factor = exp2_fast(fmaf(own.x, log2_scale, -softmax_shift(highest, log2_scale)));
  const float sum = warp_sum(own.y * factor);
#pragma unroll
  for (int first = 0; first < kMostMergedSplits; first += kAhead) {
    if (first > 0) load(first);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const float of_split = __shfl_sync(~0u, factor, first + i);
      if (first + i < splits) total.add(of_split, parts[i]);
    }
  }
  total.store(y + column, sum);
}

}  // namespace qn
