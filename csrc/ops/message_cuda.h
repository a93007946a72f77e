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

// Two neighbouring words, 16-byte aligned: four bf16.
struct TwoMessages {
  uint64_t first = 0, second = 0;

  // Unless `wanted`, nothing is read. Does not wait, so that several may be on their way.
  __device__ __forceinline__ void load(const uint64_t* from, bool wanted) {
    asm volatile(
        "{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %3, 0;\n@wanted ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];\n}"
        : "+l"(first), "+l"(second)
        : "l"(from), "r"(wanted ? 1 : 0)
        : "memory");
  }
  __device__ __forceinline__ bool have(uint32_t tag) const {
    return ((static_cast<uint32_t>(first >> 32) ^ tag) | (static_cast<uint32_t>(second >> 32) ^ tag)) == 0;
  }
  __device__ __forceinline__ uint2 bits() const {
    return {static_cast<uint32_t>(first), static_cast<uint32_t>(second)};
  }
};

// A wait for a message this often in vain, seconds, is an error in the program: the kernel ends with one too.
constexpr int kMostPolls = 1 << 24;

}  // namespace qn
