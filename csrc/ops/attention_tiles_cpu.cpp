// The portable tile arithmetic of attention: the truth the vector variants are tested against.
#include <cmath>
#include <cstring>

#include "ops/attention_tiles.h"

namespace qn {

namespace {

void product(const TileProduct& args) {
  const auto* b = static_cast<const float*>(args.b.data);
  for (int64_t r = 0; r < args.rows; ++r) {
    float* c = args.c.data + r * args.c.stride;
    if (!args.add) std::memset(c, 0, sizeof(float) * args.columns);
    for (int64_t i = 0; i < args.depth; ++i) {
      const float a = args.a.data[r * args.a.row + i * args.a.column];
      const float* from = b + i * args.b.stride;
      for (int64_t j = 0; j < args.columns; ++j) c[j] += a * from[j];
    }
  }
}

void transpose(float* to, const float* from, int64_t stride, int64_t keys, int64_t D) {
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t s = 0; s < keys; ++s) to[d * kKeyTile + s] = from[s * stride + d];
  }
}

void widen(float* to, const void* from, DType dtype, int64_t count) {
  const auto* bits = static_cast<const uint16_t*>(from);
  for (int64_t i = 0; i < count; ++i) to[i] = dtype == DType::kF16 ? f16_to_f32(bits[i]) : bf16_to_f32(bits[i]);
}

float softmax(float* s, int64_t count, float scale, float* max, float* sum) {
  float highest = *max;
  for (int64_t i = 0; i < count; ++i) highest = s[i] > highest ? s[i] : highest;
  // A row that has seen nothing yet has max = −inf; exp(−inf − 0) is the zero it should be, a NaN score stays a NaN.
  const float shift = highest == -INFINITY ? 0.0f : highest;
  const float factor = std::exp((*max - shift) * scale);
  float total = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    s[i] = std::exp((s[i] - shift) * scale);
    total += s[i];
  }
  *max = highest;
  *sum = *sum * factor + total;
  return factor;
}

void gradient(float* s, float* dp, int64_t count, float scale, float lse, float delta) {
  for (int64_t i = 0; i < count; ++i) {
    s[i] = std::exp(s[i] * scale - lse);
    dp[i] = s[i] * (dp[i] - delta) * scale;
  }
}

void exp_all(float* y, const float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = std::exp(x[i]);
}

}  // namespace

const AttentionKernels& attention_kernels_portable() {
  static constexpr AttentionKernels kKernels = {product, transpose, widen, softmax, gradient, exp_all, nullptr};
  return kKernels;
}

}  // namespace qn
