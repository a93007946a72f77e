// Attention forward, backward and from a paged cache (ops/attention.h).
#include "ops/attention.h"

#include "check.h"
#include "core/dtype.h"

namespace qn::cross {

namespace {

// Sums of softmax weights (together 1) times values below 1, and their gradients.
constexpr float kTolerance = 2e-5f;

struct Shape {
  int64_t B, T, Q, KV, D;
};

std::string name_of(const Shape& s) {
  return "attention B=" + std::to_string(s.B) + " T=" + std::to_string(s.T) + " Q=" + std::to_string(s.Q) +
         " KV=" + std::to_string(s.KV) + " D=" + std::to_string(s.D);
}

// y, lse, dq, dk and dv one after the other.
std::vector<std::vector<float>> both_passes(const Shape& s, bool masked, const Cpu& cpu) {
  const int64_t queries = s.B * s.T * s.Q * s.D, keys = s.B * s.T * s.KV * s.D;
  const std::vector<float> q = floats(queries, 41, 2.0f), k = floats(keys, 42, 2.0f), v = floats(keys, 43);
  const std::vector<float> dy = floats(queries, 44);
  const std::vector<uint8_t> mask = bytes(s.B * s.T, 45, 2);
  const uint8_t* seen = masked ? mask.data() : nullptr;
  std::vector<float> y(queries), lse(s.B * s.T * s.Q), dq(queries), dk(keys), dv(keys);
  const AttentionShape shape = {s.B, s.T, s.Q, s.KV, s.D};
  attention_cpu({y.data(), lse.data(), q.data(), k.data(), v.data(), seen, nullptr, shape}, cpu);
  attention_backward_cpu(
      {dq.data(), dk.data(), dv.data(), dy.data(), y.data(), lse.data(), q.data(), k.data(), v.data(), seen, nullptr, shape},
      cpu);
  return {y, lse, dq, dk, dv};
}

void check_both_passes(const Shape& shape, bool masked, const Levels& levels) {
  constexpr const char* kParts[] = {"y", "lse", "dq", "dk", "dv"};
  const auto a = both_passes(shape, masked, levels.one), b = both_passes(shape, masked, levels.portable),
             c = both_passes(shape, masked, levels.three);
  for (int i = 0; i < 5; ++i) {
    const std::string name = std::string(kParts[i]) + " of " + name_of(shape) + (masked ? " masked" : "");
    check_close(a[i], b[i], kTolerance, name);
    check_equal(a[i], c[i], name + " on three threads");
  }
}

std::vector<float> cached(const Shape& s, int64_t offset, DType dtype, const Cpu& cpu) {
  constexpr int64_t kPageTokens = 32;
  const int64_t pages = (offset + s.T + kPageTokens - 1) / kPageTokens, elements = s.KV * kPageTokens * s.D;
  const std::vector<float> values = floats(2 * pages * elements, 51);
  std::vector<uint16_t> halves;
  for (const float value : values) halves.push_back(dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value));
  const auto* base = dtype == DType::kF32 ? reinterpret_cast<const char*>(values.data())
                                          : reinterpret_cast<const char*>(halves.data());
  std::vector<const void*> k, v;
  for (int64_t i = 0; i < pages; ++i) {
    k.push_back(base + 2 * i * elements * dtype_bytes(dtype));
    v.push_back(base + (2 * i + 1) * elements * dtype_bytes(dtype));
  }
  const std::vector<float> q = floats(s.T * s.Q * s.D, 52, 2.0f);
  std::vector<float> y(q.size());
  attention_cached_cpu({y.data(), q.data(), k.data(), v.data(), dtype, kPageTokens, s.T, offset, s.Q, s.KV, s.D}, cpu);
  return y;
}

}  // namespace

void check_attention(const Levels& levels) {
  for (const Shape shape : {Shape{1, 1, 1, 1, 1}, Shape{2, 3, 2, 1, 5}, Shape{1, 17, 4, 2, 16}, Shape{1, 33, 3, 3, 36},
                            Shape{2, 70, 4, 1, 24}, Shape{1, 131, 5, 1, 32}}) {
    for (const bool masked : {false, true}) check_both_passes(shape, masked, levels);
  }
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int64_t offset : {0, 1, 30, 67, 300}) {
      for (const Shape shape :
           {Shape{1, 1, 4, 2, 32}, Shape{1, 1, 5, 1, 16}, Shape{1, 2, 3, 1, 20}, Shape{1, 7, 7, 1, 48}}) {
        const std::string name = name_of(shape) + " cached at " + std::to_string(offset) + " in format " +
                                 std::to_string(static_cast<int>(dtype));
        const std::vector<float> y = cached(shape, offset, dtype, levels.one);
        check_close(y, cached(shape, offset, dtype, levels.portable), kTolerance, name);
        check_equal(y, cached(shape, offset, dtype, levels.three), name + " on three threads");
      }
    }
  }
}

}  // namespace qn::cross
