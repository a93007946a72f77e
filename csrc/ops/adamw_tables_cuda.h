// Values of codes in shared memory, where every lane has its own banks: what the CUDA form of ops/adamw_packed.h looks
// up instead of computing it. Included by adamw_packed_cuda.h.
#pragma once

#include "ops/adamw_blocks_cuda.h"

namespace qn {
namespace {

// Entries are repeated across a row of 128 bytes, so that lanes that look up different ones do not meet in a bank.
//   kRoots     [scale of v][code]  v and √v, 8 bytes, once for every lane of a half warp
//   kInverses  [scale of v][code]  2^-20 / √v, f32, once for every lane
//   kPairs     [byte]              the values of two codes, the low nibble first, 8 bytes, once for every lane of a
//   half kKept      [byte]              the same times `keep`
constexpr uint32_t kRootRows = kOctaves * 16, kRoots = 0, kInverses = 128 * kRootRows, kPairs = 2 * kInverses,
                   kKept = kPairs + 256 * 128;
constexpr uint32_t kSharedBytes = kKept + 256 * 128;
extern __shared__ __align__(128) unsigned char shared_bytes[];

__device__ __forceinline__ uint32_t table_address() {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_bytes));
}

// All threads; ends without a barrier.
__device__ void fill_tables(float keep) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  auto* tables = static_cast<unsigned char*>(__cvta_shared_to_generic(table_address()));
  const auto copy = [=](uint32_t row, float a, float b) {
    reinterpret_cast<float*>(tables + 128 * row)[lane] = lane % 2 ? b : a;
  };
  // A lane works out one row, all lanes write it.
  for (uint32_t first = 32 * warp; first < kRootRows + 256; first += 32 * warps) {
    const uint32_t index = first + lane, byte = index - kRootRows;
    const bool roots = first < kRootRows;
    const float octaves = e2m1_value(index % 16) * e4m3_value(octave_code(static_cast<int>(index / 16 % kOctaves)));
    const float v = second_of(octaves), root = root_unit(octaves), inverse = inverse_root_unit(octaves) * 0x1p-20f;
    const float low = e2m1_value(byte % 16), high = e2m1_value(byte / 16 % 16);
    for (uint32_t from = 0; from < 32; ++from) {
      const float x = __shfl_sync(0xffffffffu, roots ? v : low, from);
      const float y = __shfl_sync(0xffffffffu, roots ? root : high, from), z = __shfl_sync(0xffffffffu, inverse, from);
      if (roots) {
        copy(kRoots / 128 + first + from, x, y);
        copy(kInverses / 128 + first + from, z, z);
      } else {
        copy(kPairs / 128 + first + from - kRootRows, x, y);
        copy(kKept / 128 + first + from - kRootRows, x * keep, y * keep);
      }
    }
  }
}

// The codes of two words, one in a byte.
struct Nibbles {
  uint32_t even[2], odd[2];
  __device__ explicit Nibbles(const uint32_t* words) {
    QN_EACH_OF(2) {
      even[i] = words[i] & 0x0f0f0f0fu;
      odd[i] = (words[i] >> 4) & 0x0f0f0f0fu;
    }
  }
  __device__ __forceinline__ uint32_t word(int i) const { return i % 2 ? odd[i / 8] : even[i / 8]; }
};

// Where a warp's lane looks up. A row is 128 bytes, so its address is an integer dot product of a word of bytes with
// one 128, which the pipe of multiplications does.
struct TableLane {
  uint32_t half, whole;  // of entries of 8 and 4 bytes
  uint32_t one;          // bits of 1.0, in a register, because an instruction takes one constant
  __device__ explicit TableLane(uint32_t lane)
      : half(table_address() | (lane & 15u) << 3),
        whole(table_address() | lane << 2),
        one(bits_of(entry_at<kRoots>(half).x)) {}

  // v and √v of code i under the scale of this index; 2^-20 / √v.
  __device__ __forceinline__ float2 root(uint32_t scale, const Nibbles& codes, int i) const {
    return entry_at<kRoots>(row_of(codes.word(i), i % 8 / 2, half + (scale << 11)));
  }
  __device__ __forceinline__ float scaled_inverse(uint32_t scale, const Nibbles& codes, int i) const {
    float inverse;
    asm("ld.shared.f32 %0, [%1 + %2];"
        : "=f"(inverse)
        : "r"(row_of(codes.word(i), i % 8 / 2, whole + (scale << 11))), "n"(kInverses));
    return inverse;
  }
  // The values of codes 2 p and 2 p + 1, or these times `keep`.
  __device__ __forceinline__ float2 pair(const uint32_t* words, int p) const {
    return entry_at<kPairs>(row_of(words[p / 4], p % 4, half));
  }
  __device__ __forceinline__ float2 kept_pair(const uint32_t* words, int p) const {
    return entry_at<kKept>(row_of(words[p / 4], p % 4, half));
  }

 private:
  template <uint32_t kOffset>
  __device__ static __forceinline__ float2 entry_at(uint32_t address) {
    float2 entry;
    asm("ld.shared.v2.f32 {%0, %1}, [%2 + %3];" : "=f"(entry.x), "=f"(entry.y) : "r"(address), "n"(kOffset));
    return entry;
  }
  // Byte `byte` of `word` as an index of rows.
  __device__ static __forceinline__ uint32_t row_of(uint32_t word, int byte, uint32_t lane) {
    return __dp4a(word, 128u << (8 * byte), lane);
  }
};

}  // namespace
}  // namespace qn
