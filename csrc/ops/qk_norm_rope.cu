#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/status.h"
#include "ops/kv_cache_slots_cuda.h"
#include "ops/norm_rope_head_cuda.h"
#include "ops/qk_norm_rope.h"

namespace qn {

namespace {

constexpr int kThreads = 256;

struct Head {
  const uint16_t* x;
  uint16_t* y;
  const float* w;
  float* inv_rms;  // null when not kept
};

// Nowhere but args.k: keys stay where the caller works with them.
struct NoCache {
  static constexpr bool kCaches = false;
};
struct Cache {
  static constexpr bool kCaches = true;
  KvCacheSlots slots;
  const uint16_t* v;
};

// Head `head` of token t, where keys follow the queries.
template <typename To>
__device__ Head head_of(const QkNormRopeCuda& a, const To& to, int64_t t, int64_t head) {
  if (head < a.Q) {
    const int64_t row = t * a.Q + head;
    return {a.q_raw + row * a.D, a.q + row * a.D, a.q_w, a.q_inv_rms ? a.q_inv_rms + row : nullptr};
  }
  const int64_t kv = head - a.Q, row = t * a.KV + kv;
  float* inv_rms = a.k_inv_rms ? a.k_inv_rms + row : nullptr;
  if constexpr (To::kCaches) {
    return {a.k_raw + row * a.D, cache_slot(to.slots.k_pages, to.slots, t, kv, a.D), a.k_w, inv_rms};
  } else {
    return {a.k_raw + row * a.D, a.k + row * a.D, a.k_w, inv_rms};
  }
}

// computes   n = x · rsqrt(mean(x²) + eps) · w;  y = rotated n           per head of q and k
// moves      read 2·T·(Q + KV)·D B (tables, w from L1 and L2), write as much           bound: memory
//            with a cache: + 4·T·KV·D B for v
// launch     grid ceil(T·heads / (256 / kLanes)), block 256              one head per kLanes threads, each with the
//            eight columns from 8·lane and their partners from D/2 + 8·lane, 16-B loads; heads of v come last
// needs      D % 16 == 0, D <= 16·kLanes, everything 16-byte aligned
// numerics   f32 sum in fixed tree order; bf16 rounding once, at the store
// measured   H200 Q=32 KV=8 D=128: T=8192 2852 GB/s, 71 % of copy (4039); to a cache, T=2048:
//            19.2 µs, 2615 GB/s, x the same at every launch, so partly from L2; 2026-11-21
template <int kLanes, typename To>
__global__ void __launch_bounds__(kThreads) qk_norm_rope_kernel(const QkNormRopeCuda a, const To to, int64_t heads) {
  const int lane = threadIdx.x % kLanes;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int64_t half = a.D / 2, column = lane * kLaneValues;
  // The exchange of lanes needs the idle threads too.
  const bool mine = row < a.T * heads && column < half;
  const int64_t t = row / heads, index = row - t * heads;
  const bool normalised = mine && index < a.Q + a.KV;
  Head head = {};
  Eight low = {}, high = {};
  if (normalised) {
    head = head_of(a, to, t, index);
    low = load8(head.x + column);
    high = load8(head.x + half + column);
  }
  const float inverse = inverse_rms_of_head<kLanes>(low, high, a.D, a.eps);
  if constexpr (To::kCaches) {
    if (mine && !normalised) {
      const int64_t kv = index - a.Q - a.KV;
      const uint16_t* from = to.v + (t * a.KV + kv) * a.D + column;
      uint16_t* slot = cache_slot(to.slots.v_pages, to.slots, t, kv, a.D) + column;
      *reinterpret_cast<uint4*>(slot) = load_bits8(from);
      *reinterpret_cast<uint4*>(slot + half) = load_bits8(from + half);
    }
  }
  if (!normalised) return;
  if (lane == 0 && head.inv_rms) *head.inv_rms = inverse;
  const Eight low_w = load8(head.w + column), high_w = load8(head.w + half + column);
  const Eight cosine = load8(a.cosines + t * half + column), sine = load8(a.sines + t * half + column);
  norm_and_rotate(low, high, inverse, low_w, high_w, cosine, sine);
  store8(head.y + column, low);
  store8(head.y + half + column, high);
}

template <int kLanes, typename To>
void launch_lanes(const QkNormRopeCuda& args, const To& to, int64_t heads, cudaStream_t stream) {
  constexpr int64_t kRows = kThreads / kLanes;
  const auto blocks = static_cast<unsigned>((args.T * heads + kRows - 1) / kRows);
  qk_norm_rope_kernel<kLanes><<<blocks, kThreads, 0, stream>>>(args, to, heads);
  QN_CUDA_CHECK(cudaGetLastError());
}

template <typename To>
void launch(const QkNormRopeCuda& args, const To& to, CudaStream stream) {
  if (args.D % (2 * kLaneValues) != 0 || args.D > 256) {
    fail(Code::kUnsupported, "Heads on CUDA need a multiple of 16 columns up to 256, not %lld",
         static_cast<long long>(args.D));
  }
  const int64_t heads = args.Q + args.KV + (To::kCaches ? args.KV : 0);
  if (args.T * heads == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (args.D <= 128) return launch_lanes<8>(args, to, heads, cuda_stream);
  launch_lanes<16>(args, to, heads, cuda_stream);
}

}  // namespace

// --------------------------------------------------------------------------------------------------------------------

void qk_norm_rope_cuda(const QkNormRopeCuda& args, CudaStream stream) { launch(args, NoCache{}, stream); }

void qk_norm_rope_cache_cuda(const QkNormRopeCuda& args, const uint16_t* v, const KvCacheSlots& slots,
                             CudaStream stream) {
  launch(args, Cache{slots, v}, stream);
}

}  // namespace qn
