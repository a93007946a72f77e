// Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): counter-based random bits,
// ten rounds unless told otherwise.
//
// Every draw of the library is addressed, never sequenced, so results do not depend on chunking, threads or devices:
//   key     = the 64-bit run seed
//   counter = { element/4 low 32, element/4 high 32 | stream << 24, parameter, step }
//   word    = element % 4
#pragma once

#include <array>
#include <cstdint>

#if defined(__CUDACC__)
#define QN_HOST_DEVICE __host__ __device__
#else
#define QN_HOST_DEVICE
#endif

namespace qn {

enum class RandomStream : uint32_t {
  kWeight = 0,
  kFirstMoment = 2,
  kSecondMoment = 3,
  kGradient = 5,
  kInitialize = 6,
  kSample = 7,
  kUser = 8,    // public quantizeNvfp4({ rounding: 'stochastic' })
  kPacked = 9,  // all draws of a block of 16 in one step of AdamW, seven rounds (ops/adamw_packed.h)
};

struct PhiloxWords {
  uint32_t w[4];
};

// Always inlined, so that files compiled for one instruction set can use it without leaving a copy for the linker to
// pick.
#define QN_PHILOX_FN __attribute__((always_inline)) QN_HOST_DEVICE inline

QN_PHILOX_FN void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
  const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
  const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
  const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
  c1 = static_cast<uint32_t>(p1);
  c3 = static_cast<uint32_t>(p0);
  c0 = n0;
  c2 = n2;
}
template <int kRounds = 10>
QN_PHILOX_FN PhiloxWords philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kRounds; ++round) {
    philox_round(c0, c1, c2, c3, k0, k1);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The same with the keys of each round worked out before.
template <int kRounds>
struct PhiloxKeys {
  uint32_t first[kRounds], second[kRounds];
};
template <int kRounds>
QN_PHILOX_FN PhiloxKeys<kRounds> philox_keys(uint64_t key) {
  PhiloxKeys<kRounds> keys{};
  for (int round = 0; round < kRounds; ++round) {
    keys.first[round] = static_cast<uint32_t>(key) + static_cast<uint32_t>(round) * 0x9E3779B9u;
    keys.second[round] = static_cast<uint32_t>(key >> 32) + static_cast<uint32_t>(round) * 0xBB67AE85u;
  }
  return keys;
}
template <int kRounds>
QN_PHILOX_FN PhiloxWords philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                    const PhiloxKeys<kRounds>& keys) {
  for (int round = 0; round < kRounds; ++round) {
    philox_round(c0, c1, c2, c3, keys.first[round], keys.second[round]);
  }
  return {{c0, c1, c2, c3}};
}

// The words of elements 4*quad .. 4*quad+3 of one parameter, step and stream.
QN_HOST_DEVICE inline PhiloxWords random_words(uint64_t seed, int64_t quad, uint32_t parameter, uint32_t step,
                                               RandomStream stream) {
  const auto q = static_cast<uint64_t>(quad);
  return philox4x32(static_cast<uint32_t>(q), static_cast<uint32_t>(q >> 32) | static_cast<uint32_t>(stream) << 24,
                    parameter, step, seed);
}

// One word -> (0, 1) on 24 bits with the half offset, so that no probability below one is ever certain. The largest
// word would round up to 1, hence the bound.
QN_HOST_DEVICE inline float uniform(uint32_t word) {
  const float u = (static_cast<float>(word >> 8) + 0.5f) * 0x1p-24f;
  return u < 1.0f ? u : 0x1.fffffep-1f;
}

}  // namespace qn
