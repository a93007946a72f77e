#include "ops/attention_decode_fused.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_check.h"
#include "ops/attention_decode_warp_cuda.h"
#include "ops/norm_rope_head_cuda.h"

namespace qn {

namespace {

// What the warps of a block multiply at a time.
constexpr int kTileKeys = kWarps * kWarpKeys;
// With 8 key heads, 256 blocks: two for nearly every SM of an H100 or H200 from a context of 2048 on.
constexpr int kMostSplits = kMostMergedSplits;
constexpr int kMostStages = 3;  // 104 KiB of D = 128: two blocks an SM

// Tiles of a context, dealt evenly to splits.
struct Splits {
  int tiles, count;
  __host__ __device__ explicit Splits(int64_t context)
      : tiles(static_cast<int>((context + kTileKeys - 1) / kTileKeys)),
        count(tiles < kMostSplits ? tiles : kMostSplits) {}
  __device__ int begin(int split) const { return split * tiles / count; }
};

// What splits found: o f32[KV, kMostSplits, group, D], not yet divided by the sum, and of each maximum (of unscaled
// scores) and sum; how many splits of a key head have written.
struct Partials {
  float* o;
  float2* statistics;
  uint32_t* arrived;

  __host__ __device__ Partials(void* scratch, int64_t Q, int64_t D)
      : o(static_cast<float*>(scratch)),
        statistics(reinterpret_cast<float2*>(o + Q * kMostSplits * D)),
        arrived(reinterpret_cast<uint32_t*>(statistics + Q * kMostSplits)) {}
};

template <int D, int kStages>
struct Shared {
  // A warp's tiles; at the end the first holds its sums, f32[kHeads, kSumStride].
  WarpTile<D> ring[kWarps][kStages];
  uint16_t q[kHeads * kTileStride<D>];  // heads past the group's are zeros
  uint16_t k[D], v[D];                  // of the new position
  float max[kWarps][kHeads], sum[kWarps][kHeads];
  bool last;
  static_assert(sizeof(WarpTile<D>) >= kHeads * kSumStride<D> * sizeof(float));
};

__device__ __forceinline__ uint16_t* row_at(uint16_t* const* pages, int page_tokens, int64_t D, int kv, int position) {
  const auto tokens = static_cast<uint32_t>(page_tokens), at = static_cast<uint32_t>(position);
  return pages[at / tokens] + (int64_t{kv} * page_tokens + at % tokens) * D;
}

// What a warp copies next: its 16 keys of `tile` and where they lie, which is looked up one copy ahead.
template <int D>
struct Ring {
  const AttentionDecodeFusedCuda& a;
  int kv, position, tile, end;
  const uint16_t *k, *v;

  __device__ Ring(const AttentionDecodeFusedCuda& a, int kv, int position, int begin, int end)
      : a(a), kv(kv), position(position), tile(begin), end(end) {
    find();
  }
  __device__ __forceinline__ int key() const {
    return tile * kTileKeys + static_cast<int>(threadIdx.x) / 32 * kWarpKeys;
  }
  __device__ __forceinline__ bool exists() const { return tile < end && key() <= position; }
  __device__ __forceinline__ void find() {
    if (!exists()) return;
    const auto page_tokens = static_cast<int>(a.slots.page_tokens);
    k = row_at(a.slots.k_pages, page_tokens, D, kv, key());
    v = row_at(a.slots.v_pages, page_tokens, D, kv, key());
  }
  // One group of copies in any case. Positions from the new one on become zeros: none is in memory yet.
  __device__ __forceinline__ void copy_next(WarpTile<D>& to) {
    constexpr int kChunks = D / 8;
    if (exists()) {
      const int lane = threadIdx.x % 32, first = key();
#pragma unroll
      for (int i = 0; i < kWarpKeys * kChunks / 32; ++i) {
        const int row = (i * 32 + lane) / kChunks, column = lane % kChunks * 8;
        const bool old = first + row < position;
        copy_async_16(to.k + row * kTileStride<D> + column, k + row * D + column, old);
        copy_async_16(to.v + row * kTileStride<D> + column, v + row * D + column, old);
      }
    }
    copy_async_commit();
    ++tile;
    find();
  }
};

// Eight threads a head: the group's queries to shared memory, and in the block that has it the new position's key and
// value to shared memory and the cache. Weights are fetched before the previous kernel is waited for.
template <int D, int kStages>
__device__ __forceinline__ void prepare_rows(const AttentionDecodeFusedCuda& a, Shared<D, kStages>& shared, int group,
                                             int position, bool has_new) {
  constexpr int kLanes = 8, kHalf = D / 2;
  const int slot = threadIdx.x / kLanes, column = threadIdx.x % kLanes * kLaneValues, kv = blockIdx.x;
  static_assert(kBlockThreads / kLanes >= kHeads + 2);
  const bool inside = column < kHalf, is_query = inside && slot < group;
  const bool is_key = inside && has_new && slot == group, is_value = inside && has_new && slot == group + 1;
  Eight low_w = {}, high_w = {}, low = {}, high = {}, cosine = {}, sine = {};
  if (is_query || is_key) {
    const float* w = (is_query ? a.q_w : a.k_w) + column;
    low_w = load8(w);
    high_w = load8(w + kHalf);
  }
  if (inside && slot >= group && slot < kHeads) {
    *reinterpret_cast<uint4*>(shared.q + slot * kTileStride<D> + column) = {0, 0, 0, 0};
    *reinterpret_cast<uint4*>(shared.q + slot * kTileStride<D> + kHalf + column) = {0, 0, 0, 0};
  }
  wait_for_previous_kernel();
  if (is_query || is_key) {
    const uint16_t* from = (is_query ? a.q + (int64_t{kv} * group + slot) * D : a.k + int64_t{kv} * D) + column;
    low = load8(from);
    high = load8(from + kHalf);
    cosine = load8(a.cosines + column);
    sine = load8(a.sines + column);
  }
  const float inverse = inverse_rms_of_head<kLanes>(low, high, D, a.eps);
  norm_and_rotate(low, high, inverse, low_w, high_w, cosine, sine);
  if (is_query) {
    store8(shared.q + slot * kTileStride<D> + column, low);
    store8(shared.q + slot * kTileStride<D> + kHalf + column, high);
  }
  if (!is_key && !is_value) return;
  uint4 bits[2] = {f32_to_bf16x8(low), f32_to_bf16x8(high)};
  if (is_value) {
    bits[0] = load_bits8(a.v + int64_t{kv} * D + column);
    bits[1] = load_bits8(a.v + int64_t{kv} * D + kHalf + column);
  }
  uint16_t* const cached =
      row_at(is_key ? a.slots.k_pages : a.slots.v_pages, static_cast<int>(a.slots.page_tokens), D, kv, position);
  uint16_t* const kept = is_key ? shared.k : shared.v;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    *reinterpret_cast<uint4*>(cached + i * kHalf + column) = bits[i];
    *reinterpret_cast<uint4*>(kept + i * kHalf + column) = bits[i];
  }
}

// A warp a head: the sums of the block's warps, in their order, to y or where the splits of a head meet.
template <int D, int kStages>
__device__ __forceinline__ void merge_warps(const AttentionDecodeFusedCuda& a, const Shared<D, kStages>& shared,
                                            const Partials& partials, int64_t first_row, int group, bool alone,
                                            float log2_scale) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  using Vector = typename Columns<D>::Vector;
  for (int head = warp; head < group; head += kWarps) {
    const int column = lane * Columns<D>::kCount;
    float highest = shared.max[0][head], sum = 0.0f;
#pragma unroll
    for (int i = 1; i < kWarps; ++i) highest = fmaxf(highest, shared.max[i][head]);
    const float shift = softmax_shift(highest, log2_scale);
    Columns<D> total;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      const float factor = exp2_fast(fmaf(shared.max[i][head], log2_scale, -shift));
      sum = fmaf(shared.sum[i][head], factor, sum);
      const float* from = reinterpret_cast<const float*>(&shared.ring[i][0]) + head * kSumStride<D> + column;
      total.add(factor, *reinterpret_cast<const Vector*>(from));
    }
    if (alone) {
      total.store(a.y + (int64_t{blockIdx.x} * group + head) * D + column, sum);
      continue;
    }
    const int64_t row = first_row + head;
    *reinterpret_cast<Vector*>(partials.o + row * D + column) = total.vector;
    if (lane == 0) partials.statistics[row] = make_float2(highest, sum);
  }
}

// computes   q, k normalised and rotated; k, v to the cache; y = softmax(q · kᵀ / √D) · v over all positions
// moves      read 4·KV·D B a position + 2·(Q + 2·KV)·D B, write 2·(Q + 2·KV)·D B;
//            write and read (from L2) 4·Q·(D + 2) B a split                                         bound: memory
// launch     grid (KV, splits), block 128, smem kStages·4·32·(D+8)·2 B + 3 KB
//            a block has one key head and one split of its tiles of 64 keys; a warp its 16 keys of each, with a ring
//            of its own; the last block of a key head to end merges the splits
// needs      D 64 or 128, Q / KV <= 8, pages of a multiple of 16 positions, all 16-byte aligned
// numerics   queries and keys as qk_norm_rope_cuda; f32 scores and sums, p rounds to bf16 for p · v; y rounds once
// measured   H200 Q=32 KV=8 D=128, three tiles, overlapping the launch before: S=32768 3616 GB/s, 85 % of copy (4269);
//            S=8192 2694 GB/s, 63 %; one tile: S=2048 977 GB/s, 23 %; 2026-11-21
template <int D, int kStages>
__global__ void __launch_bounds__(kBlockThreads, 4)
    attention_decode_fused_kernel(const __grid_constant__ AttentionDecodeFusedCuda a, const float log2_scale) {
  extern __shared__ uint4 dynamic[];
  auto& shared = *reinterpret_cast<Shared<D, kStages>*>(dynamic);
  let_next_kernel_start();
  // Past L1, which may hold the position of a step before.
  const int position = a.slots.position ? __ldcg(a.slots.position) : static_cast<int>(a.slots.offset);
  const int kv = blockIdx.x, split = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = static_cast<int>(a.Q / a.KV);
  const Splits splits(int64_t{position} + 1);
  if (split >= splits.count) return;
  const int begin = splits.begin(split), end = splits.begin(split + 1);

  // Old positions depend on no kernel before this one, so they travel while it is waited for.
  Ring<D> ring(a, kv, position, begin, end);
#pragma unroll
  for (int i = 0; i < kStages; ++i) ring.copy_next(shared.ring[warp][i]);
  prepare_rows<D, kStages>(a, shared, group, position, split == splits.count - 1);
  __syncthreads();

  uint32_t q[D / 16][2];
#pragma unroll
  for (int i = 0; i < D / 16; i += 2) {
    uint32_t both[4];
    load_matrices(both, shared.q + lane % 8 * kTileStride<D> + lane / 8 * 8 + 16 * i);
    q[i][0] = both[0];
    q[i][1] = both[1];
    q[i + 1][0] = both[2];
    q[i + 1][1] = both[3];
  }
  WarpSums<D> sums;
  int slot = 0;
#pragma unroll 1
  for (int tile_index = begin; tile_index < end; ++tile_index) {
    const int key0 = tile_index * kTileKeys + warp * kWarpKeys, row = position - key0;
    if (row < 0) break;
    WarpTile<D>& tile = shared.ring[warp][slot];
    copy_async_wait<kStages - 1>();
    __syncwarp();
    if (row < kWarpKeys) {
      if (lane < D / 8) {
        *reinterpret_cast<uint4*>(tile.k + row * kTileStride<D> + lane * 8) = reinterpret_cast<uint4*>(shared.k)[lane];
        *reinterpret_cast<uint4*>(tile.v + row * kTileStride<D> + lane * 8) = reinterpret_cast<uint4*>(shared.v)[lane];
      }
      __syncwarp();
    }
    sums.add(tile, q, key0, position, log2_scale);
    __syncwarp();
    ring.copy_next(tile);
    slot = slot + 1 == kStages ? 0 : slot + 1;
  }
  // Nothing is on its way to this warp's first tile any more: copies past the last tile are empty.
  sums.store(reinterpret_cast<float*>(&shared.ring[warp][0]), shared.max[warp], shared.sum[warp]);
  __syncthreads();

  const Partials partials(a.scratch, a.Q, D);
  const int64_t first_row = int64_t{kv} * kMostSplits * group;
  merge_warps<D, kStages>(a, shared, partials, first_row + split * group, group, splits.count == 1, log2_scale);
  if (splits.count == 1) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.last = atomicAdd(partials.arrived + kv, 1u) + 1 == static_cast<uint32_t>(splits.count);
    if (shared.last) partials.arrived[kv] = 0;  // for the next launch
  }
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  for (int head = warp; head < group; head += kWarps) {
    merge_splits<D>(a.y + (int64_t{kv} * group + head) * D, partials.statistics + first_row + head,
                    partials.o + (first_row + head) * D, splits.count, group, log2_scale);
  }
}

template <int D, int kStages>
void launch(const AttentionDecodeFusedCuda& args, cudaStream_t stream) {
  const auto kernel = attention_decode_fused_kernel<D, kStages>;
  constexpr auto kBytes = static_cast<int>(sizeof(Shared<D, kStages>));
  QN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  // As the products before and after (gemv.cu), so that their blocks share a multiprocessor.
  QN_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.KV), static_cast<unsigned>(Splits(args.slots.offset + 1).count));
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = args.overlap_previous ? 1 : 0;
  QN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args, score_scale(D) * kLog2E));
}

template <int D>
void launch_staged(const AttentionDecodeFusedCuda& args, cudaStream_t stream) {
  const Splits splits(args.slots.offset + 1);
  const int most = (splits.tiles + splits.count - 1) / splits.count;  // tiles of a split
  const int stages = args.stages ? args.stages : std::min(most, kMostStages);
  if (stages == 1) return launch<D, 1>(args, stream);
  if (stages == 2) return launch<D, 2>(args, stream);
  launch<D, kMostStages>(args, stream);
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

bool attention_decode_fused_fits_cuda(int64_t Q, int64_t KV, int64_t D, int64_t page_tokens) {
  return (D == 64 || D == 128) && KV > 0 && Q > 0 && Q % KV == 0 && Q / KV <= kHeads && page_tokens > 0 &&
         page_tokens % kWarpKeys == 0;
}

int64_t attention_decode_fused_scratch_bytes(int64_t Q, int64_t KV, int64_t D) {
  return Q * kMostSplits * (D + 2) * int64_t{sizeof(float)} + KV * int64_t{sizeof(uint32_t)};
}

void attention_decode_fused_cuda(const AttentionDecodeFusedCuda& args, CudaStream stream) {
  const KvCacheSlots& slots = args.slots;
  if (!attention_decode_fused_fits_cuda(args.Q, args.KV, args.D, slots.page_tokens) || slots.offset < 0 ||
      slots.offset > INT32_MAX - kTileKeys) {
    fail(Code::kInvalidArgument,
         "Expected 64 or 128 columns, up to 8 query heads a key head and pages of a multiple of 16 positions but "
         "received D %lld, Q %lld, KV %lld, %lld positions, offset %lld",
         static_cast<long long>(args.D), static_cast<long long>(args.Q), static_cast<long long>(args.KV),
         static_cast<long long>(slots.page_tokens), static_cast<long long>(slots.offset));
  }
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  args.D == 64 ? launch_staged<64>(args, cuda_stream) : launch_staged<128>(args, cuda_stream);
}

}  // namespace qn
