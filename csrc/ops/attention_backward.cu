// The backward pass of attention on CUDA; attention_backward_cpu.cpp has the formulas. As there the scores are
// recomputed twice, once by blocks of queries for dq and once by blocks of keys for dk and dv, so that every output is
// one sum in one block (7 products instead of 5, and no atomics).
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "ops/attention_tiles_cuda.h"

namespace qn {

namespace {

constexpr int kBlockRows = 16 * kWarps;  // queries (dq) or keys (dk, dv) that a block owns, 16 a warp
constexpr int kStep = 32;                // keys or queries of a tile that it reads, two tiles at a time
constexpr int kStatistics = 3;           // lse, delta and, in segments, start of a tile's queries

// computes   delta = Σ_d dy · y                              per query and head
// moves      read 4·Q·T·D B, write 4·Q·T B                                                       bound: memory
// launch     grid ceil(B·T·Q / 4), block 128, smem 0         one warp a row
// needs      D 1 .. 256
// numerics   f32, fixed order
// measured   not yet
__global__ void attention_delta_kernel(float* __restrict__ delta, const uint16_t* __restrict__ dy,
                                       const uint16_t* __restrict__ y, int64_t rows, int64_t D) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  float a[kLaneDims], b[kLaneDims];
  load_row(a, dy + row * D, D);
  load_row(b, y + row * D, D);
  const float sum = row_dot(a, b);
  if (threadIdx.x % 32 == 0) delta[row] = sum;
}

// computes   dq = Σ_s ds · k,  ds = p (dy · vᵀ − delta) / √D,  of one head's 64 queries
// moves      read 4·Q·T·D + 4·KV·T·D B (k and v again from L2), write 2·Q·T·D B                 bound: tensor cores
//            tiles of keys before the block's first segment are not read
// launch     grid (B·Q, ceil(T / 64)), block 128, smem 4·64·(D+8)·2 B    late tiles first: they see the most keys
// needs      D 64 or 128, 16-byte aligned rows
// numerics   f32 scores and sums, ds · √D rounds to bf16 for its product; keys in ascending tiles of 32
// measured   H200 T=8192 Q=32 KV=8 D=128, all of the backward pass (delta; dq; dk, dv): 191 TFLOP/s, 2026-11-21
template <int D, bool kSegments>
__global__ void __launch_bounds__(kBlockThreads)
    attention_backward_query_kernel(const AttentionBackwardCuda args, float scale) {
  extern __shared__ uint4 shared[];
  constexpr int kStage = kStep * kTileStride<D>;
  uint16_t* q_tile = reinterpret_cast<uint16_t*>(shared);
  uint16_t* dy_tile = q_tile + kBlockRows * kTileStride<D>;
  uint16_t* k_tiles = dy_tile + kBlockRows * kTileStride<D>;
  uint16_t* v_tiles = k_tiles + 2 * kStage;

  const auto& [B, T, Q, KV, head_dim] = args.shape;
  const int64_t b = blockIdx.x / Q, h = blockIdx.x % Q, kv = h / (Q / KV);
  const int64_t t0 = int64_t{gridDim.y - 1 - blockIdx.y} * kBlockRows, end = t0 + kBlockRows < T ? t0 + kBlockRows : T;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t token = t0 + 16 * warp, row0 = (b * T + t0) * Q + h;
  const uint8_t* mask = args.mask ? args.mask + b * T : nullptr;
  const auto start = [&](int64_t t) { return int64_t{args.starts[b * T + (t < T ? t : T - 1)]}; };
  // Starts never descend, so no row sees a key before the first row's start, of the block or of the warp.
  const int64_t begin = kSegments ? start(t0) / kStep * kStep : 0, warp_begin = kSegments ? start(token) : 0;
  const auto load_keys = [&](int64_t s0) {
    const int64_t at = ((b * T + s0) * KV + kv) * D;
    const int stage = s0 / kStep % 2;
    const uint8_t* hidden = mask ? mask + s0 : nullptr;
    load_tile<D, kStep>(k_tiles + stage * kStage, {args.k + at, KV * D, T - s0, hidden});
    load_tile<D, kStep>(v_tiles + stage * kStage, {args.v + at, KV * D, T - s0, hidden});
  };

  load_tile<D, kBlockRows>(q_tile, {args.q + row0 * D, Q * D, T - t0, nullptr});
  load_tile<D, kBlockRows>(dy_tile, {args.dy + row0 * D, Q * D, T - t0, nullptr});
  load_keys(begin);
  copy_async_commit();

  float lse[2], delta[2];
  int first[2] = {};  // where the rows' segments begin
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = 16 * warp + lane / 4 + 8 * half;
    const bool exists = t0 + row < T;
    lse[half] = exists ? args.lse[row0 + row * Q] * kLog2E : 0.0f;
    delta[half] = exists ? args.scratch[row0 + row * Q] : 0.0f;
    if constexpr (kSegments) first[half] = static_cast<int>(start(t0 + row));
  }
  float dq[1][D / 8][4];
  clear(dq);
  for (int64_t s0 = begin; s0 < end; s0 += kStep) {
    copy_async_wait<0>();
    __syncthreads();
    if (s0 + kStep < end) load_keys(s0 + kStep);
    copy_async_commit();
    if (s0 >= token + 16 || (kSegments && s0 + kStep <= warp_begin)) continue;
    const int stage = s0 / kStep % 2;
    float p[1][kStep / 8][4], dp[1][kStep / 8][4];
    clear(p);
    clear(dp);
    add_row_products<D>(p, q_tile + 16 * warp * kTileStride<D>, k_tiles + stage * kStage);
    add_row_products<D>(dp, dy_tile + 16 * warp * kTileStride<D>, v_tiles + stage * kStage);
    const uint64_t visible = visible_keys(mask ? mask + s0 : nullptr, T - s0);
    const int diagonal = static_cast<int>(token - s0);
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + lane % 4 * 2 + i % 2;
        const bool sees = column <= diagonal + lane / 4 + i / 2 * 8 &&
                          (!kSegments || column + static_cast<int>(s0) >= first[i / 2]) && (visible >> column & 1);
        const float weight = sees ? exp2_fast(fmaf(p[0][n][i], scale * kLog2E, -lse[i / 2])) : 0.0f;
        dp[0][n][i] = weight * (dp[0][n][i] - delta[i / 2]);
      }
    }
    add_column_products<D>(dq, dp, k_tiles + stage * kStage);
  }
  store_rows(args.dq + (row0 + 16 * warp * Q) * D, Q * D, T - token, dq[0], scale, scale);
}

// How many of the `tiles` tiles of queries from position s0 on have one whose segment begins at or before the last of
// the block's keys, which begin at s0 too. Starts never descend, so those tiles come first. All threads take part.
__device__ __forceinline__ int64_t tiles_that_see(const int32_t* starts, int64_t T, int64_t s0, int64_t tiles) {
  for (int64_t begin = 0; begin < tiles; begin += kBlockThreads) {
    const int64_t tile = begin + threadIdx.x, t = s0 + tile * kStep;
    const int seeing = __syncthreads_count(t < T && starts[t] < s0 + kBlockRows);
    if (seeing < kBlockThreads) return begin + seeing;
  }
  return tiles;
}

// computes   dv = Σ_t pᵀ · dy,  dk = Σ_t dsᵀ · q,  of one key head's 64 keys
// moves      read 4·KV·T·D + 4·Q·T·D B (q and dy again from L2), write 4·KV·T·D B               bound: tensor cores
//            tiles of queries behind the segment of the block's last key are not read
// launch     grid (B·KV, ceil(T / 64)), block 128, smem 4·64·(D+8)·2 + 768 B    early tiles first: the most see them
// needs      D 64 or 128, 16-byte aligned rows
// numerics   f32 scores and sums, p and ds · √D round to bf16 for their products; tiles of 32 queries ascending, in
//            each the group's heads ascending
// measured   H200 T=8192 Q=32 KV=8 D=128, all of the backward pass (delta; dq; dk, dv): 191 TFLOP/s, 2026-11-21
template <int D, bool kSegments>
__global__ void __launch_bounds__(kBlockThreads)
    attention_backward_key_kernel(const AttentionBackwardCuda args, float scale) {
  extern __shared__ uint4 shared[];
  constexpr int kStage = kStep * kTileStride<D>;
  uint16_t* k_tile = reinterpret_cast<uint16_t*>(shared);
  uint16_t* v_tile = k_tile + kBlockRows * kTileStride<D>;
  uint16_t* q_tiles = v_tile + kBlockRows * kTileStride<D>;
  uint16_t* dy_tiles = q_tiles + 2 * kStage;
  float* statistics = reinterpret_cast<float*>(dy_tiles + 2 * kStage);  // [stage][kStatistics][kStep]

  const auto& [B, T, Q, KV, head_dim] = args.shape;
  const int64_t b = blockIdx.x / KV, kv = blockIdx.x % KV, group = Q / KV;
  const int64_t s0 = int64_t{blockIdx.y} * kBlockRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint8_t* mask = args.mask ? args.mask + b * T + s0 : nullptr;
  int64_t query_tiles = (T - s0 + kStep - 1) / kStep;
  if constexpr (kSegments) query_tiles = tiles_that_see(args.starts + b * T, T, s0, query_tiles);
  const int64_t steps = query_tiles * group;
  const auto load_queries = [&](int64_t step) {
    const int64_t t0 = s0 + step / group * kStep, row0 = (b * T + t0) * Q + kv * group + step % group;
    const int stage = step % 2;
    load_tile<D, kStep>(q_tiles + stage * kStage, {args.q + row0 * D, Q * D, T - t0, nullptr});
    load_tile<D, kStep>(dy_tiles + stage * kStage, {args.dy + row0 * D, Q * D, T - t0, nullptr});
    float* to = statistics + stage * kStatistics * kStep + threadIdx.x;
    const int row = threadIdx.x % kStep;
    const bool exists = t0 + row < T;
    if (threadIdx.x < 2 * kStep) {
      copy_async_4(to, (threadIdx.x < kStep ? args.lse : args.scratch) + row0 + (exists ? row * Q : 0), exists);
    } else if (kSegments && threadIdx.x < 3 * kStep) {
      copy_async_4(to, args.starts + b * T + t0 + (exists ? row : 0), exists);
    }
  };

  const int64_t key0 = ((b * T + s0) * KV + kv) * D;
  load_tile<D, kBlockRows>(k_tile, {args.k + key0, KV * D, T - s0, mask});
  load_tile<D, kBlockRows>(v_tile, {args.v + key0, KV * D, T - s0, mask});
  load_queries(0);
  copy_async_commit();

  const uint64_t visible = visible_keys(mask, T - s0);
  float dk[1][D / 8][4], dv[1][D / 8][4];
  clear(dk);
  clear(dv);
  for (int64_t step = 0; step < steps; ++step) {
    copy_async_wait<0>();
    __syncthreads();
    if (step + 1 < steps) load_queries(step + 1);
    copy_async_commit();
    // Of the first query of the tile and of this warp's keys, both counted from s0.
    const int query0 = static_cast<int>(step / group * kStep), warp_key = 16 * warp;
    if (query0 + kStep <= warp_key) continue;
    const int stage = step % 2;
    const float* lse = statistics + stage * kStatistics * kStep;
    const float* delta = lse + kStep;
    const auto* start = reinterpret_cast<const int32_t*>(delta + kStep);
    if (kSegments && start[0] - static_cast<int>(s0) >= warp_key + 16) continue;
    float p[1][kStep / 8][4], ds[1][kStep / 8][4];
    clear(p);
    clear(ds);
    add_row_products<D>(p, k_tile + warp_key * kTileStride<D>, q_tiles + stage * kStage);
    add_row_products<D>(ds, v_tile + warp_key * kTileStride<D>, dy_tiles + stage * kStage);
    // A query past T has q, dy, lse and delta of 0: p is 1, and all that it adds is 0.
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + lane % 4 * 2 + i % 2, key = warp_key + lane / 4 + i / 2 * 8;
        const bool sees = key <= query0 + column && (!kSegments || key + static_cast<int>(s0) >= start[column]) &&
                          (visible >> key & 1);
        p[0][n][i] = sees ? exp2_fast(fmaf(p[0][n][i], scale * kLog2E, -lse[column] * kLog2E)) : 0.0f;
        ds[0][n][i] = p[0][n][i] * (ds[0][n][i] - delta[column]);
      }
    }
    add_column_products<D>(dv, p, dy_tiles + stage * kStage);
    add_column_products<D>(dk, ds, q_tiles + stage * kStage);
  }
  const int64_t to = key0 + 16 * warp * KV * D, left = T - s0 - 16 * warp;
  store_rows(args.dv + to, KV * D, left, dv[0], 1.0f, 1.0f);
  store_rows(args.dk + to, KV * D, left, dk[0], scale, scale);
}

// computes   dq for any D up to 256, one warp a query and head, one key after another
// moves      k and v of every earlier position per query, from L2                                   bound: issue
// launch     grid ceil(B·T·Q / 4), block 128, smem 0
// needs      D 1 .. 256
// numerics   f32 throughout, dq rounds once at the store
// measured   not yet; meant for small models and tests
__global__ void attention_backward_query_any_kernel(const AttentionBackwardCuda args, float scale) {
  const auto& [B, T, Q, KV, D] = args.shape;
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (index >= B * T * Q) return;
  const int64_t b = index / (T * Q), t = index / Q % T, kv = index % Q / (Q / KV);
  float q[kLaneDims], dy[kLaneDims], k[kLaneDims], v[kLaneDims], dq[kLaneDims] = {};
  load_row(q, args.q + index * D, D);
  load_row(dy, args.dy + index * D, D);
  const float lse = args.lse[index], delta = args.scratch[index];
  for (int64_t s = args.starts ? args.starts[b * T + t] : 0; s <= t; ++s) {
    if (args.mask && !args.mask[b * T + s]) continue;
    const int64_t key = ((b * T + s) * KV + kv) * D;
    load_row(k, args.k + key, D);
    load_row(v, args.v + key, D);
    const float p = exp2_fast((row_dot(q, k) * scale - lse) * kLog2E);
    add_row(dq, p * (row_dot(dy, v) - delta), k);
  }
  store_row(args.dq + index * D, dq, scale, D);
}

// computes   dk and dv for any D up to 256, one warp a key and head, one query and head after another
// moves      q and dy of every later position of the group per key, from L2                        bound: issue
// launch     grid ceil(B·T·KV / 4), block 128, smem 0
// needs      D 1 .. 256
// numerics   f32 throughout, dk and dv round once at the store
// measured   not yet; meant for small models and tests
__global__ void attention_backward_key_any_kernel(const AttentionBackwardCuda args, float scale) {
  const auto& [B, T, Q, KV, D] = args.shape;
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (index >= B * T * KV) return;
  const int64_t b = index / (T * KV), s = index / KV % T, kv = index % KV, group = Q / KV;
  float q[kLaneDims], dy[kLaneDims], k[kLaneDims], v[kLaneDims], dk[kLaneDims] = {}, dv[kLaneDims] = {};
  const bool visible = !args.mask || args.mask[b * T + s];
  if (visible) {
    load_row(k, args.k + index * D, D);
    load_row(v, args.v + index * D, D);
  }
  for (int64_t t = s; visible && t < T && (!args.starts || args.starts[b * T + t] <= s); ++t) {
    for (int64_t head = 0; head < group; ++head) {
      const int64_t row = (b * T + t) * Q + kv * group + head;
      load_row(q, args.q + row * D, D);
      load_row(dy, args.dy + row * D, D);
      const float p = exp2_fast((row_dot(q, k) * scale - args.lse[row]) * kLog2E);
      const float ds = p * (row_dot(dy, v) - args.scratch[row]);
      add_row(dv, p, dy);
      add_row(dk, ds, q);
    }
  }
  store_row(args.dv + index * D, dv, 1.0f, D);
  store_row(args.dk + index * D, dk, scale, D);
}

unsigned blocks_of(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

template <int D, bool kSegments>
void launch(const AttentionBackwardCuda& args, cudaStream_t stream) {
  const auto& shape = args.shape;
  constexpr auto kQueryBytes = static_cast<int>(tile_bytes<D>(2 * kBlockRows + 4 * kStep));
  constexpr int kKeyBytes = kQueryBytes + 2 * kStatistics * kStep * static_cast<int>(sizeof(float));
  constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  QN_CUDA_CHECK(cudaFuncSetAttribute(attention_backward_query_kernel<D, kSegments>, kAttribute, kQueryBytes));
  QN_CUDA_CHECK(cudaFuncSetAttribute(attention_backward_key_kernel<D, kSegments>, kAttribute, kKeyBytes));
  const unsigned tiles = blocks_of(shape.T, kBlockRows);
  const dim3 query_grid(static_cast<unsigned>(shape.B * shape.Q), tiles);
  const dim3 key_grid(static_cast<unsigned>(shape.B * shape.KV), tiles);
  attention_backward_key_kernel<D, kSegments><<<key_grid, kBlockThreads, kKeyBytes, stream>>>(args, score_scale(D));
  QN_CUDA_CHECK(cudaGetLastError());
  attention_backward_query_kernel<D, kSegments>
      <<<query_grid, kBlockThreads, kQueryBytes, stream>>>(args, score_scale(D));
  QN_CUDA_CHECK(cudaGetLastError());
}

template <int D>
void launch(const AttentionBackwardCuda& args, cudaStream_t stream) {
  if (args.starts) return launch<D, true>(args, stream);
  launch<D, false>(args, stream);
}

void launch_any(const AttentionBackwardCuda& args, cudaStream_t stream) {
  const auto& [B, T, Q, KV, D] = args.shape;
  const unsigned key_blocks = blocks_of(B * T * KV, kWarps), query_blocks = blocks_of(B * T * Q, kWarps);
  attention_backward_key_any_kernel<<<key_blocks, kBlockThreads, 0, stream>>>(args, score_scale(D));
  QN_CUDA_CHECK(cudaGetLastError());
  attention_backward_query_any_kernel<<<query_blocks, kBlockThreads, 0, stream>>>(args, score_scale(D));
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

int64_t attention_backward_scratch_bytes(const AttentionShape& shape) {
  return shape.B * shape.T * shape.Q * static_cast<int64_t>(sizeof(float));
}

void attention_backward_cuda(const AttentionBackwardCuda& args, CudaStream stream) {
  check_attention_shape_cuda(args.shape);
  const auto& [B, T, Q, KV, D] = args.shape;
  if (B * T == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const int64_t rows = B * T * Q;
  attention_delta_kernel<<<blocks_of(rows, kWarps), kBlockThreads, 0, cuda_stream>>>(args.scratch, args.dy, args.y,
                                                                                     rows, D);
  QN_CUDA_CHECK(cudaGetLastError());
  if (D == 64) return launch<64>(args, cuda_stream);
  if (D == 128) return launch<128>(args, cuda_stream);
  launch_any(args, cuda_stream);
}

}  // namespace qn
