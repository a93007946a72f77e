// What the drivers of scripts/test-neon.sh share: seeded inputs, comparisons and the count at the end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "core/philox.h"

namespace qn::cross {

// Counts one check; a failed one is printed.
void check(bool ok, const std::string& name);
int failures();
void print_summary();

// |a − b| <= tolerance everywhere, and where one is not finite both are the same.
void check_close(const std::vector<float>& a, const std::vector<float>& b, float tolerance, const std::string& name);

template <typename T>
void check_equal(const std::vector<T>& a, const std::vector<T>& b, const std::string& name) {
  const bool same = a.size() == b.size();
  check(same && (a.empty() || __builtin_memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0), name);
}

// Seeded values: uniform in [−size, size), and bytes.
std::vector<float> floats(int64_t count, uint32_t seed, float size = 1.0f);
std::vector<uint8_t> bytes(int64_t count, uint32_t seed, uint32_t below = 256);

// FNV-1a over everything added, to compare bytes with those another architecture gave.
struct Digest {
  uint64_t value = 0xcbf29ce484222325ull;
  void add(const void* data, int64_t count);
};
// `expected` is what the portable, AVX2 and AVX-512 kernels give on x86-64.
void check_digest(uint64_t value, uint64_t expected, const char* name);

// The level under test and the truth, each with one thread, and the level with three.
struct Levels {
  Cpu portable, one, three;
};

void check_linear(const Levels& levels);
void check_rows(const Levels& levels);
void check_attention(const Levels& levels);
void check_exact(const Levels& levels);
void check_model(const Levels& levels);

}  // namespace qn::cross
