// Where a row of KvCacheSlots lies. For .cu files alone.
#pragma once

#include "ops/kv_cache_write.h"

namespace qn {

// Head kv of token t.
__device__ __forceinline__ uint16_t* cache_slot(uint16_t* const* pages, const KvCacheSlots& slots, int64_t t,
                                                int64_t kv, int64_t D) {
  const auto at = static_cast<uint32_t>((slots.position ? *slots.position : slots.offset) + t);
  const auto tokens = static_cast<uint32_t>(slots.page_tokens);
  return pages[at / tokens] + (kv * slots.page_tokens + at % tokens) * D;
}

}  // namespace qn
