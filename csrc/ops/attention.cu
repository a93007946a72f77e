// The forward pass of attention on CUDA (FlashAttention-2, Dao, 2023: one block per tile of queries, online softmax).
#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "ops/attention_merge_cuda.h"
#include "ops/attention_task.h"

namespace qn {

namespace {

constexpr int kKeys = 64;         // keys of a tile
constexpr int kRowFragments = 2;  // of 16 rows, of a warp: two halve the shared memory read for a product
constexpr int kWarpRows = 16 * kRowFragments;
constexpr int kRows = kWarpRows * kWarps;

// Where queries come from and results go. Row r of a block's `heads` neighbouring query heads, which share a key head,
// is token r / heads, head r % heads of them: their keys are read once.
struct TileQueries {
  uint16_t* y;
  float* lse;  // or null
  const uint16_t* q;
  int64_t T, Q, group;  // group = Q / KV
  int64_t offset;       // the position of token 0
  int heads;

  __device__ int rows() const { return static_cast<int>(T) * heads; }
  // In [B, T, Q].
  __device__ int64_t index(int b, int head, int row) const {
    const auto r = static_cast<uint32_t>(row), h = static_cast<uint32_t>(heads);
    return (b * T + r / h) * Q + head + r % h;
  }
  __device__ int position(int row) const {
    return static_cast<int>(offset) + static_cast<int>(static_cast<uint32_t>(row) / static_cast<uint32_t>(heads));
  }
};

// Keys and values in tensors [B, T, KV, D].
struct DenseKeys {
  const uint16_t* k;
  const uint16_t* v;
  const uint8_t* mask;
  int64_t T, KV;

  __device__ const uint16_t* row(const uint16_t* x, int b, int kv, int s, int D) const {
    return x + ((b * T + s) * KV + kv) * D;
  }
  __device__ const uint8_t* mask_of(int b) const { return mask ? mask + b * T : nullptr; }
  __device__ int stride(int D) const { return static_cast<int>(KV) * D; }
  __device__ int count() const { return static_cast<int>(T); }
  static constexpr bool kSegments = false;
  __device__ int start(int, int) const { return 0; }
};

// The same in segments.
struct SegmentKeys : DenseKeys {
  const int32_t* starts;

  static constexpr bool kSegments = true;
  // The first key that the query at `position` of sequence b sees; positions past the end count as the last.
  __device__ int start(int b, int position) const { return starts[b * T + min(position, static_cast<int>(T) - 1)]; }
};

// Keys and values of one sequence in pages [KV, page_tokens, D]; whole tiles, where page_tokens is a multiple of
// theirs.
struct PagedKeys {
  const uint16_t* const* k;
  const uint16_t* const* v;
  int64_t page_tokens, positions;

  __device__ const uint16_t* row(const uint16_t* const* x, int, int kv, int s, int D) const {
    return cache_row(x, page_tokens, D, kv, s);
  }
  __device__ const uint8_t* mask_of(int) const { return nullptr; }
  __device__ int stride(int D) const { return D; }
  __device__ int count() const { return static_cast<int>(positions); }
  static constexpr bool kSegments = false;
  __device__ int start(int, int) const { return 0; }
};

// Running maximum (of unscaled scores) and sum of a lane's rows: [fragment][row g or g + 8].
struct SoftmaxRows {
  float max[kRowFragments][2], sum[kRowFragments][2];
};

// s = −inf where the column of the key tile, whose first key is s0, is past the position of the row of the warp's rows
// from `row` on, before its segment, or is not visible.
template <typename Keys>
__device__ __forceinline__ void hide_scores(float (&s)[kRowFragments][kKeys / 8][4], const TileQueries& queries,
                                            const Keys& keys, int b, int row, int s0, uint64_t visible) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int position = queries.position(row + 16 * m + 8 * half + lane / 4), last = position - s0;
      const int first = Keys::kSegments ? keys.start(b, position) - s0 : 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = 8 * n + lane % 4 * 2 + i;
          const bool outside = column > last || (Keys::kSegments && column < first);
          if (outside || !(visible >> column & 1)) s[m][n][2 * half + i] = -INFINITY;
        }
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

// o / sum to y and log-sum-exp to lse, or o, maximum and sum to the split's partial results, of a warp's rows.
template <int D>
__device__ __forceinline__ void finish_rows(const TileQueries& queries, const AttentionPartials& partials, int b,
                                            int head, int row0, const float (&o)[kRowFragments][D / 8][4],
                                            const SoftmaxRows& rows, float scale) {
  const int lane = threadIdx.x % 32, column = lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row0 + 16 * m + 8 * half + lane / 4;
      const float sum = quad_sum(rows.sum[m][half]), max = rows.max[m][half];
      if (row >= queries.rows()) continue;
      const int64_t index = queries.index(b, head, row);
      if (partials.splits > 1) {
        const int64_t part = index * partials.splits + blockIdx.z;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          *reinterpret_cast<float2*>(partials.o + part * D + 8 * n + column) =
              make_float2(o[m][n][2 * half], o[m][n][2 * half + 1]);
        }
        if (lane % 4 == 0) partials.statistics[part] = make_float2(max, sum);
        continue;
      }
      const float factor = sum != 0.0f ? 1.0f / sum : 0.0f;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        *reinterpret_cast<uint32_t*>(queries.y + index * D + 8 * n + column) =
            pack_bf16(o[m][n][2 * half] * factor, o[m][n][2 * half + 1] * factor);
      }
      if (queries.lse && lane % 4 == 0) {
        queries.lse[index] = sum != 0.0f ? fmaf(max, scale, logf(sum)) : -INFINITY;
      }
    }
  }
}

// computes   y = softmax(q · kᵀ / √D) · v, lse, causal and masked, of 128 rows, or of one split of their keys
// moves      read 2·Q·T·D + 4·KV·S·D B (k and v again from L2), write 2·Q·T·D + 4·Q·T B         bound: tensor cores
// launch     grid (B·Q / heads, ceil(T·heads / 128), splits), block 128, smem 4·64·(D+8)·2 B    late tiles first: they
//            see the most keys; tiles of keys before the block's first segment are not read
// needs      D 64 or 128, 16-byte aligned rows
// numerics   f32 scores and sums, p rounds to bf16 for p · v, y once at the store; keys in ascending tiles of 64
// measured   H200 T=8192 Q=32 KV=8 D=128: 316 TFLOP/s; T=2048: 260 TFLOP/s; 2026-11-21
template <int D, typename Keys>
__global__ void __launch_bounds__(kBlockThreads, 2)
    attention_kernel(const TileQueries queries, const Keys keys, const AttentionPartials partials, int split_keys,
                     float scale) {
  extern __shared__ uint4 shared[];
  uint16_t* q_tile = reinterpret_cast<uint16_t*>(shared);
  uint16_t* k_tile = q_tile + kRows * kTileStride<D>;
  uint16_t* v_tile = k_tile + kKeys * kTileStride<D>;

  const int heads_of_b = static_cast<int>(queries.Q) / queries.heads, b = blockIdx.x / heads_of_b;
  const int head = blockIdx.x % heads_of_b * queries.heads, kv = head / static_cast<int>(queries.group);
  const int row0 = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kRows;
  const int last_row = min(row0 + kRows, queries.rows()) - 1;
  // Starts never descend, so no row of the block sees a key before the tile of its first row's start.
  const int first_tile = Keys::kSegments ? keys.start(b, queries.position(row0)) / kKeys * kKeys : 0;
  const int begin = max(static_cast<int>(blockIdx.z) * split_keys, first_tile);
  const int end = min(queries.position(last_row) + 1, (static_cast<int>(blockIdx.z) + 1) * split_keys);
  const int row = row0 + static_cast<int>(threadIdx.x) / 32 * kWarpRows;  // the warp's first
  const int warp_end = row <= last_row ? queries.position(row + kWarpRows - 1) + 1 : 0;
  // Where the segments of the warp's first and last rows begin.
  const int warp_begin = Keys::kSegments ? keys.start(b, queries.position(row)) : 0;
  const int last_begin = Keys::kSegments ? keys.start(b, queries.position(row + kWarpRows - 1)) : 0;
  const uint8_t* mask = keys.mask_of(b);
  const auto load_keys = [&](uint16_t* tile, auto x, int s0) {
    const uint16_t* first = keys.row(x, b, kv, s0, D);
    load_tile<D, kKeys>(
        tile, [&](int s) { return s0 + s < keys.count() && (!mask || mask[s0 + s]); },
        [&](int s) { return first + s * keys.stride(D); });
  };

  load_tile<D, kRows>(
      q_tile, [&](int r) { return row0 + r <= last_row; },
      [&](int r) { return queries.q + queries.index(b, head, row0 + r) * D; });
  if (begin < end) load_keys(k_tile, keys.k, begin);
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
  // v arrives behind q · kᵀ, the next k behind the softmax and p · v. Warps whose queries all come before the tile, or
  // whose segments all begin after it, only copy.
  for (int s0 = begin; s0 < end; s0 += kKeys) {
    const bool seen = s0 < warp_end && (!Keys::kSegments || s0 + kKeys > warp_begin);
    load_keys(v_tile, keys.v, s0);
    copy_async_commit();
    float s[kRowFragments][kKeys / 8][4];
    clear(s);
    if (seen) add_row_products<D>(s, q_tile + (row - row0) * kTileStride<D>, k_tile);
    copy_async_wait<0>();
    __syncthreads();
    if (s0 + kKeys < end) load_keys(k_tile, keys.k, s0 + kKeys);
    copy_async_commit();
    if (seen) {
      const uint64_t visible = visible_keys(mask ? mask + s0 : nullptr, keys.count() - s0);
      if (s0 + kKeys - 1 > queries.position(row) || (Keys::kSegments && s0 < last_begin) || ~visible) {
        hide_scores(s, queries, keys, b, row, s0, visible);
      }
      softmax_step(s, o, rows, scale * kLog2E);
      add_column_products<D>(o, s, v_tile);
    }
    copy_async_wait<0>();
    __syncthreads();
  }
  finish_rows<D>(queries, partials, b, head, row, o, rows, scale);
}

// computes   the same for any D up to 256, one warp a query and head, one key after another
// moves      k and v of every earlier position per query, from L2                                   bound: issue
// launch     grid ceil(B·T·Q / 4), block 128, smem 0
// needs      D 1 .. 256
// numerics   f32 throughout, y rounds once at the store
// measured   not yet; meant for small models and tests
template <typename Keys>
__global__ void attention_any_kernel(const TileQueries queries, const Keys keys, int64_t count, int64_t D,
                                     float scale) {
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (index >= count) return;
  const auto& [y, lse, q_rows, T, Q, group, offset, heads] = queries;
  const auto b = static_cast<int>(index / (T * Q)), kv = static_cast<int>(index % Q / group);
  const auto last = static_cast<int>(offset + index / Q % T);
  const uint8_t* mask = keys.mask_of(b);
  const float log2_scale = scale * kLog2E;
  float q[kLaneDims], o[kLaneDims] = {}, x[kLaneDims];
  load_row(q, q_rows + index * D, D);
  float max = -INFINITY, sum = 0.0f;
  for (int s = keys.start(b, last); s <= last; ++s) {
    if (mask && !mask[s]) continue;
    load_row(x, keys.row(keys.k, b, kv, s, D), D);
    const float score = row_dot(q, x), highest = fmaxf(max, score);
    const float shift = softmax_shift(highest, log2_scale);
    const float factor = exp2_fast(fmaf(max, log2_scale, -shift)), p = exp2_fast(fmaf(score, log2_scale, -shift));
    load_row(x, keys.row(keys.v, b, kv, s, D), D);
    for (int i = 0; i < kLaneDims; ++i) o[i] = fmaf(o[i], factor, p * x[i]);
    sum = fmaf(sum, factor, p);
    max = highest;
  }
  store_row(y + index * D, o, sum != 0.0f ? 1.0f / sum : 0.0f, D);
  if (lse && threadIdx.x % 32 == 0) lse[index] = sum != 0.0f ? fmaf(max, scale, logf(sum)) : -INFINITY;
}

int64_t row_tiles(const TileQueries& queries) { return (queries.T * queries.heads + kRows - 1) / kRows; }

template <int D, typename Keys>
void launch(const TileQueries& queries, const Keys& keys, const AttentionPartials& partials, int64_t split_keys,
            int64_t B, cudaStream_t stream) {
  constexpr auto kBytes = static_cast<int>(tile_bytes<D>(kRows + 2 * kKeys));
  const auto kernel = attention_kernel<D, Keys>;
  QN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(static_cast<unsigned>(B * queries.Q / queries.heads), static_cast<unsigned>(row_tiles(queries)),
                  static_cast<unsigned>(partials.splits));
  kernel<<<grid, kBlockThreads, kBytes, stream>>>(queries, keys, partials, static_cast<int>(split_keys),
                                                  score_scale(D));
  QN_CUDA_CHECK(cudaGetLastError());
}

template <typename Keys>
void launch_any(const TileQueries& queries, const Keys& keys, int64_t B, int64_t D, cudaStream_t stream) {
  const int64_t count = B * queries.T * queries.Q;
  const auto blocks = static_cast<unsigned>((count + kWarps - 1) / kWarps);
  attention_any_kernel<<<blocks, kBlockThreads, 0, stream>>>(queries, keys, count, D, score_scale(D));
  QN_CUDA_CHECK(cudaGetLastError());
}

template <typename Keys>
void launch_tiles(const TileQueries& queries, const Keys& keys, const AttentionPartials& partials, int64_t split_keys,
                  int64_t B, int64_t D, cudaStream_t stream) {
  if (D == 64) return launch<64>(queries, keys, partials, split_keys, B, stream);
  launch<128>(queries, keys, partials, split_keys, B, stream);
}

bool has_tiles(int64_t D) { return D == 64 || D == 128; }

// Whole sequences.
template <typename Keys>
void attend(const TileQueries& queries, const Keys& keys, int64_t B, int64_t D, cudaStream_t stream) {
  if (!has_tiles(D)) return launch_any(queries, keys, B, D, stream);
  launch_tiles(queries, keys, AttentionPartials(nullptr, 0, 1), (queries.T + kKeys - 1) / kKeys * kKeys, B, D, stream);
}

TileQueries query_rows(const AttentionPagedCuda& args) {
  const int64_t group = args.Q / args.KV;
  return {args.y, nullptr, args.q, args.T, args.Q, group, args.offset, static_cast<int>(group)};
}

bool has_tiles(const AttentionPagedCuda& args) { return has_tiles(args.D) && args.page_tokens % kKeys == 0; }

// Keys of a split: all, or where that leaves less than two blocks for each of an H200's 132 multiprocessors, fewer, but
// four tiles at least. The number is constant, so that every device gives the same bytes.
int64_t split_keys_of(const AttentionPagedCuda& args) {
  constexpr int64_t kBlocksWanted = 264, kLeastTiles = 4;
  const int64_t tiles = (args.offset + args.T + kKeys - 1) / kKeys, blocks = args.KV * row_tiles(query_rows(args));
  const int64_t splits =
      std::clamp((kBlocksWanted + blocks - 1) / blocks, int64_t{1}, std::max(tiles / kLeastTiles, int64_t{1}));
  return (tiles + splits - 1) / splits * kKeys;
}

int64_t splits_of(const AttentionPagedCuda& args) {
  const int64_t keys = split_keys_of(args);
  return (args.offset + args.T + keys - 1) / keys;
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void attention_cuda(const AttentionForwardCuda& args, CudaStream stream) {
  check_attention_shape_cuda(args.shape);
  const auto& [B, T, Q, KV, D] = args.shape;
  if (B * T == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const TileQueries queries = {args.y, args.lse, args.q, T, Q, Q / KV, 0, 1};
  const DenseKeys keys = {args.k, args.v, args.mask, T, KV};
  if (args.starts) return attend(queries, SegmentKeys{keys, args.starts}, B, D, cuda_stream);
  attend(queries, keys, B, D, cuda_stream);
}

int64_t attention_paged_scratch_bytes(const AttentionPagedCuda& args) {
  if (args.T == 0 || !has_tiles(args)) return 0;
  const int64_t splits = splits_of(args);
  return splits > 1 ? AttentionPartials::bytes(args.T * args.Q, splits, args.D) : 0;
}

void attention_paged_cuda(const AttentionPagedCuda& args, CudaStream stream) {
  check_attention_shape_cuda({1, args.T, args.Q, args.KV, args.D});
  if (args.offset < 0 || args.offset + args.T > INT32_MAX || args.page_tokens < 1) {
    fail(Code::kInvalidArgument, "Expected an offset of 0 or more and pages of 1 or more but received %lld and %lld",
         static_cast<long long>(args.offset), static_cast<long long>(args.page_tokens));
  }
  if (args.T == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const TileQueries queries = query_rows(args);
  const PagedKeys keys = {args.k_pages, args.v_pages, args.page_tokens, args.offset + args.T};
  if (!has_tiles(args)) return launch_any(queries, keys, 1, args.D, cuda_stream);
  const AttentionPartials partials(args.scratch, args.T * args.Q, splits_of(args));
  const int64_t split_keys = split_keys_of(args);
  launch_tiles(queries, keys, partials, split_keys, 1, args.D, cuda_stream);
  if (partials.splits == 1) return;
  launch_merge(args.y, partials, {args.offset, nullptr, args.T, split_keys}, args.T * args.Q, args.D, cuda_stream);
}

}  // namespace qn
