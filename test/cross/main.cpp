// Every kernel of one instruction set against the portable ones: main <isa>. scripts/test-neon.sh builds and runs it.
#include <cmath>
#include <cstdio>

#include "check.h"

namespace qn::cross {

namespace {
int passed = 0, failed = 0;
}

void check(bool ok, const std::string& name) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("failed: %s\n", name.c_str());
}

int failures() { return failed; }
void print_summary() { std::printf("%d passed, %d failed\n", passed, failed); }

void check_close(const std::vector<float>& a, const std::vector<float>& b, float tolerance, const std::string& name) {
  bool ok = a.size() == b.size();
  float worst = 0;
  for (size_t i = 0; ok && i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    const float error = std::fabs(a[i] - b[i]);
    ok = error <= tolerance;
    worst = error;
  }
  check(ok, ok ? name : name + ": off by " + std::to_string(worst));
}

std::vector<float> floats(int64_t count, uint32_t seed, float size) {
  std::vector<float> out(count);
  for (int64_t i = 0; i < count; ++i) {
    const PhiloxWords words = philox4x32(static_cast<uint32_t>(i), 0, 0, 0, seed);
    out[i] = (static_cast<float>(words.w[0] >> 8) * 0x1p-23f - 1.0f) * size;
  }
  return out;
}

std::vector<uint8_t> bytes(int64_t count, uint32_t seed, uint32_t below) {
  std::vector<uint8_t> out(count);
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<uint8_t>(philox4x32(static_cast<uint32_t>(i), 1, 0, 0, seed).w[0] % below);
  }
  return out;
}

void Digest::add(const void* data, int64_t count) {
  for (int64_t i = 0; i < count; ++i) value = (value ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3ull;
}

void check_digest(uint64_t value, uint64_t expected, const char* name) {
  char hex[40];
  std::snprintf(hex, sizeof hex, "0x%016llx", static_cast<unsigned long long>(value));
  check(value == expected, std::string(name) + " differs from x86-64: " + hex);
}

}  // namespace qn::cross

int main(int count, char** words) {
  using namespace qn;
  try {
    const Isa isa = count > 1 ? isa_from_name(words[1]) : detect_isa();
    MemoryLedger ledger;
    ThreadPool one(1, ledger), three(3, ledger);
    const cross::Levels levels = {{one, Isa::kPortable}, {one, isa}, {three, isa}};
    cross::check_linear(levels);
    cross::check_rows(levels);
    cross::check_attention(levels);
    cross::check_exact(levels);
    cross::check_model(levels);
    cross::print_summary();
    return cross::failures() == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("stopped: %s\n", error.what());
    return 1;
  }
}
