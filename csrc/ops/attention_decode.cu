// Attention of a few new tokens over a paged cache on CUDA: blocks take splits of the keys (flash-decoding, Dao et al.,
// 2023), each with all query heads of its key head so that a key is read once, and a second kernel merges the splits.
#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "ops/attention_merge_cuda.h"

namespace qn {

namespace {

// 128 keys of D = 128 are 64 KiB: three blocks fill an SM's shared memory of an H100 or H200 with bytes on their way,
// and 8 key heads give every SM a block from a context of 2100 on.
constexpr int kSplitKeys = 128;
constexpr int kWarpKeys = kSplitKeys / kWarps;
constexpr int kRows = 16;  // queries and heads of one product
constexpr int kProbabilityStride = kSplitKeys + 8;

int64_t splits_of(const AttentionDecodeCuda& args) { return (args.offset + args.T + kSplitKeys - 1) / kSplitKeys; }

__device__ __forceinline__ int64_t first_position(const AttentionDecodeCuda& args) {
  return args.position ? *args.position : args.offset;
}

template <int D>
struct DecodeTiles {
  uint16_t k[kSplitKeys * kTileStride<D>];
  uint16_t v[kSplitKeys * kTileStride<D>];
  // q until the scores are there, then p.
  uint16_t q_or_p[kRows * (kTileStride<D> > kProbabilityStride ? kTileStride<D> : kProbabilityStride)];
  float max[kWarps][kRows], sum[kWarps][kRows];
  const uint16_t *k_rows[kSplitKeys], *v_rows[kSplitKeys];
};

// Rows row0 .. row0 + 15 of the T · group rows of a key head; q lies in its tile. Row r is token r / group, head
// kv · group + r % group.
template <int D>
__device__ __forceinline__ void decode_rows(const AttentionDecodeCuda& args, const AttentionPartials& partials,
                                            DecodeTiles<D>& tiles, int row0, int64_t first, float log2_scale) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = static_cast<int>(args.Q / args.KV);
  const int64_t kv = blockIdx.x, split = blockIdx.y, s0 = split * kSplitKeys;
  const int rows = static_cast<int>(args.T) * group;

  float s[1][kWarpKeys / 8][4];
  clear(s);
  add_row_products<D>(s, tiles.q_or_p, tiles.k + kWarpKeys * warp * kTileStride<D>);
  const int64_t key0 = s0 + kWarpKeys * warp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    const int64_t last = first + (row0 + row) / group - key0;
    float highest = -INFINITY;
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        if (8 * n + lane % 4 * 2 + i % 2 > last) s[0][n][i] = -INFINITY;
        highest = fmaxf(highest, s[0][n][i]);
      }
    }
    highest = quad_max(highest);
    if (lane % 4 == 0) tiles.max[warp][row] = highest;
  }
  __syncthreads();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    float highest = tiles.max[0][row];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) highest = fmaxf(highest, tiles.max[i][row]);
    const float shift = softmax_shift(highest, log2_scale);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; ++n) {
      const float low = exp2_fast(fmaf(s[0][n][2 * half], log2_scale, -shift));
      const float high = exp2_fast(fmaf(s[0][n][2 * half + 1], log2_scale, -shift));
      sum += low + high;
      uint16_t* p = tiles.q_or_p + row * kProbabilityStride + kWarpKeys * warp + 8 * n + lane % 4 * 2;
      *reinterpret_cast<uint32_t*>(p) = pack_bf16(low, high);
    }
    sum = quad_sum(sum);
    if (lane % 4 == 0) tiles.sum[warp][row] = sum;
  }
  copy_async_wait<0>();
  __syncthreads();

  // Every warp sums a quarter of the columns over all keys.
  constexpr int kColumns = D / kWarps;
  float o[kColumns / 8][4] = {};
  const uint16_t* p_row = tiles.q_or_p + lane % 16 * kProbabilityStride + lane / 16 * 8;
  const uint16_t* v_row = tiles.v + lane % 16 * kTileStride<D> + lane / 16 * 8 + kColumns * warp;
#pragma unroll
  for (int k = 0; k < kSplitKeys; k += 16) {
    uint32_t left[4], right[4];
    load_matrices(left, p_row + k);
#pragma unroll
    for (int n = 0; n < kColumns / 8; n += 2) {
      load_matrices_transposed(right, v_row + k * kTileStride<D> + 8 * n);
      mma_bf16(o[n], left, right[0], right[1]);
      mma_bf16(o[n + 1], left, right[2], right[3]);
    }
  }

  const auto index_of = [&](int row) {  // in [T·Q, splits]
    return ((row0 + row) / group * args.Q + kv * group + (row0 + row) % group) * partials.splits + split;
  };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    if (row0 + row >= rows) continue;
    float* to = partials.o + index_of(row) * D + kColumns * warp + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      *reinterpret_cast<float2*>(to + 8 * n) = make_float2(o[n][2 * half], o[n][2 * half + 1]);
    }
  }
  const int row = threadIdx.x;
  if (row >= kRows || row0 + row >= rows) return;
  float highest = tiles.max[0][row], sum = tiles.sum[0][row];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) {
    highest = fmaxf(highest, tiles.max[i][row]);
    sum += tiles.sum[i][row];
  }
  partials.statistics[index_of(row)] = make_float2(highest, sum);
}

// computes   o, max, sum of softmax(q · kᵀ / √D) · v over 128 keys, for all rows of one key head
// moves      read 4·KV·D B a position + 2·T·Q·D B, write 4·T·Q·(D + 2) B a split                    bound: memory
// launch     grid (KV, splits), block 128, smem 2·128·(D+8)·2 B + 7 KB     16 rows at a time, k and v stay
// needs      D 64 or 128, 16-byte aligned pages
// numerics   f32 scores and sums, p rounds to bf16 for p · v
// measured   H200 T=1 Q=32 KV=8 D=128, merge included: S=32768 2059 GB/s, 49 % of copy (4245); S=2048 799 GB/s,
//            19 %; T=8: 1529 GB/s, 36 %, and 702 GB/s, 17 %; 2026-11-21
template <int D>
__global__ void __launch_bounds__(kBlockThreads)
    attention_decode_kernel(const AttentionDecodeCuda args, const AttentionPartials partials, float scale) {
  extern __shared__ uint4 shared[];
  DecodeTiles<D>& tiles = *reinterpret_cast<DecodeTiles<D>*>(shared);
  const int64_t first = first_position(args), context = first + args.T, kv = blockIdx.x;
  const int64_t s0 = int64_t{blockIdx.y} * kSplitKeys;
  if (s0 >= context) return;
  const int64_t keys = context - s0 < kSplitKeys ? context - s0 : kSplitKeys;
  const int group = static_cast<int>(args.Q / args.KV), rows = static_cast<int>(args.T) * group;
  static_assert(kSplitKeys == kBlockThreads);
  if (threadIdx.x < keys) {
    tiles.k_rows[threadIdx.x] = cache_row(args.k_pages, args.page_tokens, args.D, kv, s0 + threadIdx.x);
    tiles.v_rows[threadIdx.x] = cache_row(args.v_pages, args.page_tokens, args.D, kv, s0 + threadIdx.x);
  }
  __syncthreads();
  const auto load_queries = [&](int row0) {
    load_tile<D, kRows>(
        tiles.q_or_p, [&](int row) { return row0 + row < rows; },
        [&](int row) { return args.q + ((row0 + row) / group * args.Q + kv * group + (row0 + row) % group) * D; });
    copy_async_commit();
  };
  const auto exists = [&](int row) { return row < keys; };
  load_tile<D, kSplitKeys>(tiles.k, exists, [&](int row) { return tiles.k_rows[row]; });
  load_queries(0);
  load_tile<D, kSplitKeys>(tiles.v, exists, [&](int row) { return tiles.v_rows[row]; });
  copy_async_commit();
  copy_async_wait<1>();
  __syncthreads();
  for (int row0 = 0; row0 < rows; row0 += kRows) {
    if (row0 > 0) {
      __syncthreads();
      load_queries(row0);
      copy_async_wait<0>();
      __syncthreads();
    }
    decode_rows<D>(args, partials, tiles, row0, first, scale * kLog2E);
  }
}

// computes   the same for any D up to 256, one warp a row and split, one key after another
// moves      k and v of the split per row, from L2                                                  bound: issue
// launch     grid (ceil(T·Q / 4), splits), block 128, smem 0
// needs      D 1 .. 256
// numerics   f32 throughout
// measured   not yet; meant for small models and tests
__global__ void attention_decode_any_kernel(const AttentionDecodeCuda args, const AttentionPartials partials,
                                            float scale) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, split = blockIdx.y, D = args.D;
  const int64_t first = first_position(args);
  if (row >= args.T * args.Q || split * kSplitKeys >= first + args.T) return;
  const int64_t kv = row % args.Q / (args.Q / args.KV), last = first + row / args.Q;
  const int64_t end = last + 1 < (split + 1) * kSplitKeys ? last + 1 : (split + 1) * kSplitKeys;
  const float log2_scale = scale * kLog2E;
  float q[kLaneDims], o[kLaneDims] = {}, x[kLaneDims];
  load_row(q, args.q + row * D, D);
  float max = -INFINITY, sum = 0.0f;
  for (int64_t s = split * kSplitKeys; s < end; ++s) {
    load_row(x, cache_row(args.k_pages, args.page_tokens, args.D, kv, s), D);
    const float score = row_dot(q, x), highest = fmaxf(max, score);
    const float shift = softmax_shift(highest, log2_scale);
    const float factor = exp2_fast(fmaf(max, log2_scale, -shift)), p = exp2_fast(fmaf(score, log2_scale, -shift));
    load_row(x, cache_row(args.v_pages, args.page_tokens, args.D, kv, s), D);
    for (int i = 0; i < kLaneDims; ++i) o[i] = fmaf(o[i], factor, p * x[i]);
    sum = fmaf(sum, factor, p);
    max = highest;
  }
  const int64_t index = row * partials.splits + split;
  for (int i = 0; i < kLaneDims; ++i) {
    const int d = threadIdx.x % 32 + 32 * i;
    if (d < D) partials.o[index * D + d] = o[i];
  }
  if (threadIdx.x % 32 == 0) partials.statistics[index] = make_float2(max, sum);
}

template <int D>
void launch(const AttentionDecodeCuda& args, const AttentionPartials& partials, cudaStream_t stream) {
  constexpr auto kBytes = static_cast<int>(sizeof(DecodeTiles<D>));
  QN_CUDA_CHECK(cudaFuncSetAttribute(attention_decode_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(static_cast<unsigned>(args.KV), static_cast<unsigned>(partials.splits));
  attention_decode_kernel<D><<<grid, kBlockThreads, kBytes, stream>>>(args, partials, score_scale(D));
  QN_CUDA_CHECK(cudaGetLastError());
}

void launch_any(const AttentionDecodeCuda& args, const AttentionPartials& partials, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((args.T * args.Q + kWarps - 1) / kWarps),
                  static_cast<unsigned>(partials.splits));
  attention_decode_any_kernel<<<grid, kBlockThreads, 0, stream>>>(args, partials, score_scale(args.D));
  QN_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

int64_t attention_decode_scratch_bytes(const AttentionDecodeCuda& args) {
  return AttentionPartials::bytes(args.T * args.Q, splits_of(args), args.D);
}

void attention_decode_cuda(const AttentionDecodeCuda& args, CudaStream stream) {
  check_attention_shape_cuda({1, args.T, args.Q, args.KV, args.D});
  if (args.T > 8 || args.offset < 0 || args.offset > INT32_MAX - 8 || args.page_tokens < 1) {
    fail(Code::kInvalidArgument,
         "Expected up to 8 tokens at an offset of 0 or more, and pages of 1 or more, but received %lld, %lld, %lld",
         static_cast<long long>(args.T), static_cast<long long>(args.offset), static_cast<long long>(args.page_tokens));
  }
  if (args.T == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const AttentionPartials partials(args.scratch, args.T * args.Q, splits_of(args));
  if (args.D == 64) {
    launch<64>(args, partials, cuda_stream);
  } else if (args.D == 128) {
    launch<128>(args, partials, cuda_stream);
  } else {
    launch_any(args, partials, cuda_stream);
  }
  launch_merge(args.y, partials, {args.offset, args.position, args.T, kSplitKeys}, args.T * args.Q, args.D,
               cuda_stream);
}

}  // namespace qn
