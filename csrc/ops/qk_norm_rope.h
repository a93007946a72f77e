// RMSNorm of every query and key head, then rotary embedding, in one pass of memory: ops/rms_norm.h over rows of D and
// ops/rope.h without the rounding between them.
//
// CUDA only: q, k are bf16, the rest f32; all pointers on the device, 16-byte aligned; D % 16 == 0, D <= 256. f32 with
// the sum in a fixed tree, one rounding at the store. Nothing is allocated and nothing waits.
#pragma once

#include "core/cuda_device.h"
#include "ops/kv_cache_write.h"

namespace qn {

struct QkNormRopeCuda {
  // out
  uint16_t* q;       // bf16[T, Q, D], may alias q_raw
  uint16_t* k;       // bf16[T, KV, D], may alias k_raw
  float* q_inv_rms;  // f32[T, Q], kept for the backward pass; may be null
  float* k_inv_rms;  // f32[T, KV]; may be null
  // in
  const uint16_t* q_raw;
  const uint16_t* k_raw;
  const float* q_w;      // f32[D]
  const float* k_w;      // f32[D]
  const float* cosines;  // f32[T, D/2]
  const float* sines;    // f32[T, D/2]
  int64_t T, Q, KV, D;
  float eps;
};
void qk_norm_rope_cuda(const QkNormRopeCuda& args, CudaStream stream);

// The same, with k and v bf16[T, KV, D] to their places in a cache, in one launch; args.k is not used. The tables are
// of this call's tokens, as above: rope_table_cuda makes them once a step, from the same position, for all layers,
// which costs a launch where powers and sines in double here would cost microseconds in each.
void qk_norm_rope_cache_cuda(const QkNormRopeCuda& args, const uint16_t* v, const KvCacheSlots& slots,
                             CudaStream stream);

}  // namespace qn
