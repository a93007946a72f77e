// One token's attention from raw projections to y in one launch on CUDA: qk_norm_rope_cache_cuda (ops/qk_norm_rope.h)
// and attention_decode_cuda (ops/attention.h) of T = 1. The cache gets the same bytes; y differs from theirs by the
// order of its sums and by what its probabilities are scaled by when they round to bf16.
//
// The keys are cut into 1 to 32 splits, whose number and bounds follow from the context alone, and merged in an order
// that never changes: two runs give equal bytes, whatever the launch was sized for.
#pragma once

#include "core/cuda_device.h"
#include "ops/kv_cache_write.h"

namespace qn {

// All pointers on the device, 16-byte aligned.
struct AttentionDecodeFusedCuda {
  uint16_t* y;  // out bf16[Q, D]
  // The new token's place, in and out; all positions before it are read. Where slots.position is not null, *position is
  // at most slots.offset, which then only sizes the launch.
  KvCacheSlots slots;
  // in, as the projections leave them
  const uint16_t* q;  // bf16[Q, D]
  const uint16_t* k;  // bf16[KV, D]
  const uint16_t* v;  // bf16[KV, D]
  // in
  const float* q_w;      // f32[D]
  const float* k_w;      // f32[D]
  const float* cosines;  // f32[D/2] of the new position
  const float* sines;    // f32[D/2]
  void* scratch;         // attention_decode_fused_scratch_bytes(Q, KV, D): zeros before the first launch, kept between
  int64_t Q, KV, D;
  float eps;
  // Lets this kernel start while the one before it in the stream still runs (programmatic dependent launch, from
  // compute capability 9.0 on) and fetch old keys and values. q, k, v, the tables, y and the scratch are touched only
  // when that one has ended. Then no kernel of an unbroken chain of such launches may write the page tables, the
  // weights or older positions, nor *position, but for one that lets the next start only when it has written it.
  bool overlap_previous = false;
  int stages = 0;  // tiles of keys in flight a warp, 1 to 3; 0: by context. For benchmarks
};

#if defined(QN_WITH_CUDA)
// D 64 or 128, up to 8 query heads a key head, pages of a multiple of 16 positions.
bool attention_decode_fused_fits_cuda(int64_t Q, int64_t KV, int64_t D, int64_t page_tokens);
int64_t attention_decode_fused_scratch_bytes(int64_t Q, int64_t KV, int64_t D);
// Error(kInvalidArgument) for what does not fit.
void attention_decode_fused_cuda(const AttentionDecodeFusedCuda& args, CudaStream stream);
#endif

}  // namespace qn
