// The forward pass of attention on CUDA (FlashAttention-2, Dao, 2023: one block per tile of queries, online softmax).
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "ops/attention_task.h"
#include "ops/attention_tiles_cuda.h"

namespace qn {

namespace {

constexpr int kKeys = 64;         // keys of a tile
constexpr int kRowFragments = 2;  // of 16 queries, of a warp: two halve the shared memory read for a product
constexpr int kQueries = 16 * kRowFragments * kWarps;

// Running maximum (of unscaled scores) and sum of a lane's rows: [fragment][row g or g + 8].
struct SoftmaxRows {
  float max[kRowFragments][2], sum[kRowFragments][2];
};

// s = −inf where the column of the key tile is past `diagonal` + row of the warp's rows, or is not visible.
__device__ __forceinline__ void hide_scores(float (&s)[kRowFragments][kKeys / 8][4], int diagonal, uint64_t visible) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + lane % 4 * 2 + i % 2;
        const int last = diagonal + 16 * m + lane / 4 + i / 2 * 8;
        if (column > last || !(visible >> column & 1)) s[m][n][i] = -INFINITY;
      }
    }
  }
}

// s becomes p = 2^((s − max) · log2_scale) with the new maximum; o and the sums are brought down to it.
template <int C>
__device__ __forceinline__ void softmax_step(float (&s)[kRowFragments][kKeys / 8][4], float (&o)[kRowFragments][C][4],
                                             SoftmaxRows& rows, float log2_scale) {
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = rows.max[m][half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) highest = fmaxf(highest, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      highest = quad_max(highest);
      const float shift = softmax_shift(highest, log2_scale);
      const float factor = exp2_fast(fmaf(rows.max[m][half], log2_scale, -shift));
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[m][n][i] = exp2_fast(fmaf(s[m][n][i], log2_scale, -shift));
          sum += s[m][n][i];
        }
      }
      rows.max[m][half] = highest;
      rows.sum[m][half] = fmaf(rows.sum[m][half], factor, sum);
#pragma unroll
      for (int n = 0; n < C; ++n) {
        o[m][n][2 * half] *= factor;
        o[m][n][2 * half + 1] *= factor;
      }
    }
  }
}

// o / sum to y, log-sum-exp to lse, of rows token .. token + 31 of a warp.
template <int D>
__device__ __forceinline__ void finish_rows(const AttentionForwardCuda& args, int64_t b, int64_t h, int64_t token,
                                            const float (&o)[kRowFragments][D / 8][4], const SoftmaxRows& rows,
                                            float scale) {
  const auto& [B, T, Q, KV, head_dim] = args.shape;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
    const int64_t first = token + 16 * m;
    if (first >= T) return;
    const int64_t index = (b * T + first) * Q + h;
    const float sums[2] = {quad_sum(rows.sum[m][0]), quad_sum(rows.sum[m][1])};
    store_rows(args.y + index * D, Q * D, T - first, o[m], sums[0] != 0.0f ? 1.0f / sums[0] : 0.0f,
               sums[1] != 0.0f ? 1.0f / sums[1] : 0.0f);
    if (!args.lse || lane % 4 != 0) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
      if (first + row >= T) continue;
      args.lse[index + row * Q] = sums[half] != 0.0f ? fmaf(rows.max[m][half], scale, logf(sums[half])) : -INFINITY;
    }
  }
}

// computes   y = softmax(q · kᵀ / √D) · v, lse, causal and masked, of one head's 128 queries
// moves      read 2·Q·T·D + 4·KV·T·D B (k and v again from L2), write 2·Q·T·D + 4·Q·T B         bound: tensor cores
// launch     grid (B·Q, ceil(T / 128)), block 128, smem 4·64·(D+8)·2 B    late tiles first: they see the most keys
// needs      D 64 or 128, 16-byte aligned rows
// numerics   f32 scores and sums, p rounds to bf16 for p · v, y once at the store; keys in ascending tiles of 64
// measured   not yet
template <int D>
__global__ void __launch_bounds__(kBlockThreads, 2) attention_kernel(const AttentionForwardCuda args, float scale) {
  extern __shared__ uint4 shared[];
  uint16_t* q_tile = reinterpret_cast<uint16_t*>(shared);
  uint16_t* k_tile = q_tile + kQueries * kTileStride<D>;
  uint16_t* v_tile = k_tile + kKeys * kTileStride<D>;

  const auto& [B, T, Q, KV, head_dim] = args.shape;
  const int64_t b = blockIdx.x / Q, h = blockIdx.x % Q, kv = h / (Q / KV);
  const int64_t t0 = int64_t{gridDim.y - 1 - blockIdx.y} * kQueries, end = t0 + kQueries < T ? t0 + kQueries : T;
  const int warp = threadIdx.x / 32;
  const int64_t token = t0 + warp * 16 * kRowFragments;
  const uint8_t* mask = args.mask ? args.mask + b * T : nullptr;
  const auto keys = [&](const uint16_t* x, int64_t s0) {
    return GlobalRows{x + ((b * T + s0) * KV + kv) * D, KV * D, T - s0, mask ? mask + s0 : nullptr};
  };

  load_tile<D, kQueries>(q_tile, {args.q + ((b * T + t0) * Q + h) * D, Q * D, T - t0, nullptr});
  load_tile<D, kKeys>(k_tile, keys(args.k, 0));
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  float o[kRowFragments][D / 8][4];
  clear(o);
  SoftmaxRows rows;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
    rows.max[m][0] = rows.max[m][1] = -INFINITY;
    rows.sum[m][0] = rows.sum[m][1] = 0.0f;
  }
  // v arrives behind q · kᵀ, the next k behind the softmax and p · v. Warps whose queries all come before the tile
  // only copy.
  for (int64_t s0 = 0; s0 < end; s0 += kKeys) {
    const bool seen = s0 < token + 16 * kRowFragments;
    load_tile<D, kKeys>(v_tile, keys(args.v, s0));
    copy_async_commit();
    float s[kRowFragments][kKeys / 8][4];
    clear(s);
    if (seen) add_row_products<D>(s, q_tile + warp * 16 * kRowFragments * kTileStride<D>, k_tile);
    copy_async_wait<0>();
    __syncthreads();
    if (s0 + kKeys < end) load_tile<D, kKeys>(k_tile, keys(args.k, s0 + kKeys));
    copy_async_commit();
    if (seen) {
      const uint64_t visible = visible_keys(mask ? mask + s0 : nullptr, T - s0);
      if (s0 + kKeys - 1 > token || ~visible) hide_scores(s, static_cast<int>(token - s0), visible);
      softmax_step(s, o, rows, scale * kLog2E);
      add_column_products<D>(o, s, v_tile);
    }
    copy_async_wait<0>();
    __syncthreads();
  }
  finish_rows<D>(args, b, h, token, o, rows, scale);
}

// computes   the same for any D up to 256, one warp a query and head, one key after another
// moves      k and v of every earlier position per query, from L2                                   bound: issue
// launch     grid ceil(B·T·Q / 4), block 128, smem 0
// needs      D 1 .. 256
// numerics   f32 throughout, y rounds once at the store
// measured   not yet; meant for small models and tests
__global__ void attention_any_kernel(const AttentionForwardCuda args, float scale) {
  const auto& [B, T, Q, KV, D] = args.shape;
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (index >= B * T * Q) return;
  const int64_t b = index / (T * Q), t = index / Q % T, kv = index % Q / (Q / KV);
  const float log2_scale = scale * kLog2E;
  float q[kLaneDims], o[kLaneDims] = {}, x[kLaneDims];
  load_row(q, args.q + index * D, D);
  float max = -INFINITY, sum = 0.0f;
  for (int64_t s = 0; s <= t; ++s) {
    if (args.mask && !args.mask[b * T + s]) continue;
    const int64_t key = ((b * T + s) * KV + kv) * D;
    load_row(x, args.k + key, D);
    const float score = row_dot(q, x), highest = fmaxf(max, score);
    const float shift = softmax_shift(highest, log2_scale);
    const float factor = exp2_fast(fmaf(max, log2_scale, -shift)), p = exp2_fast(fmaf(score, log2_scale, -shift));
    load_row(x, args.v + key, D);
    for (int i = 0; i < kLaneDims; ++i) o[i] = fmaf(o[i], factor, p * x[i]);
    sum = fmaf(sum, factor, p);
    max = highest;
  }
  store_row(args.y + index * D, o, sum != 0.0f ? 1.0f / sum : 0.0f, D);
  if (args.lse && threadIdx.x % 32 == 0) args.lse[index] = sum != 0.0f ? fmaf(max, scale, logf(sum)) : -INFINITY;
}

template <int D>
void launch(const AttentionForwardCuda& args, cudaStream_t stream) {
  constexpr auto kBytes = static_cast<int>(tile_bytes<D>(kQueries + 2 * kKeys));
  QN_CUDA_CHECK(cudaFuncSetAttribute(attention_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const auto& shape = args.shape;
  const dim3 grid(static_cast<unsigned>(shape.B * shape.Q), static_cast<unsigned>((shape.T + kQueries - 1) / kQueries));
  attention_kernel<D><<<grid, kBlockThreads, kBytes, stream>>>(args, score_scale(D));
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void attention_cuda(const AttentionForwardCuda& args, CudaStream stream) {
  check_attention_shape_cuda(args.shape);
  const auto& [B, T, Q, KV, D] = args.shape;
  if (B * T == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (D == 64) return launch<64>(args, cuda_stream);
  if (D == 128) return launch<128>(args, cuda_stream);
  const auto blocks = static_cast<unsigned>((B * T * Q + kWarps - 1) / kWarps);
  attention_any_kernel<<<blocks, kBlockThreads, 0, cuda_stream>>>(args, score_scale(D));
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace qn
