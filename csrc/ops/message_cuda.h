// Words that say by themselves that they have arrived: two bf16 and the tag of who wrote them, 8 bytes that are stored
// and loaded whole. A reader that finds its tag has the values, whatever else of the writer has or has not arrived. For
// .cu files alone.
#pragma once

#include <cstdint>

namespace qn {

__device__ __forceinline__ void store_message(uint64_t* to, uint32_t pair, uint32_t tag) {
  const uint64_t word = uint64_t{tag} << 32 | pair;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

// Four words, 32-byte aligned: eight bf16 to `bits`. Whether all have the tag.
__device__ __forceinline__ bool load_messages(uint4& bits, const uint64_t* from, uint32_t tag) {
  uint64_t word[4];
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(word[0]), "=l"(word[1]) : "l"(from) : "memory");
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(word[2]), "=l"(word[3])
               : "l"(from + 2)
               : "memory");
  bits = {static_cast<uint32_t>(word[0]), static_cast<uint32_t>(word[1]), static_cast<uint32_t>(word[2]),
          static_cast<uint32_t>(word[3])};
  uint32_t wrong = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) wrong |= static_cast<uint32_t>(word[i] >> 32) ^ tag;
  return wrong == 0;
}

// A wait for a message this often in vain, seconds, is an error in the program: the kernel ends with one too.
constexpr int kMostPolls = 1 << 24;

}  // namespace qn
