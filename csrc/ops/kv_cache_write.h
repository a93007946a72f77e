// New keys and values of one layer into a paged cache on CUDA, in the layout of ops/attention.h.
#pragma once

#include "core/cuda_device.h"

namespace qn {

// Where tokens 0, 1, … of a call go: positions `offset`, offset + 1, … of pages that are there already.
struct KvCacheSlots {
  uint16_t* const* k_pages;  // device array of pages of this layer, out bf16[KV, page_tokens, D] each, 16-byte aligned
  uint16_t* const* v_pages;
  int64_t page_tokens;
  int64_t offset;
  const int32_t* position;  // on the device; where not null it is read, when the kernel runs, instead of `offset`
};

// k, v in bf16[T, KV, D], 16-byte aligned. Any D; 16-byte stores where D % 8 == 0. Nothing is allocated, nothing waits.
void kv_cache_write_cuda(const KvCacheSlots& slots, const uint16_t* k, const uint16_t* v, int64_t T, int64_t KV,
                         int64_t D, CudaStream stream);

}  // namespace qn
